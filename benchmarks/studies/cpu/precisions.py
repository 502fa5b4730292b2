r"""Measures what each precision on a CPU costs in accuracy and takes in time, relative to float32.

    python -m dinov2rt.benchmarks.studies.cpu.precisions BUNDLE \
        [--cells 1x224,8x224,1x518 --sizes 224,231x345,518 --turns 25]

The graphs of the bundle run in OpenVINO, in one process, and take turns. In bf16, the float32 parts
of docs/adr/0018 are added one after the other. Accuracy covers all tokens of four photographs,
relative to the float32 graph. An int8 graph runs with everything else in fp32 and in bf16.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.studies.cpu.pixel_graphs import pixel_graphs
from dinov2rt.benchmarks.studies.turns import Cell, parse_cells, parse_sizes, ratios, shown, table
from dinov2rt.bundle.accuracy import cosines
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import Dinov2rtError
from dinov2rt.export.crops import photo_crops
from dinov2rt.runtime.backends import openvino as backend
from dinov2rt.runtime.backends import openvino_products
from dinov2rt.runtime.backends.openvino import OpenVinoBackend, cannot_run_bf16
from dinov2rt.runtime.backends.openvino_attention import expand_attention
from dinov2rt.runtime.backends.openvino_bf16 import PositionTables
from dinov2rt.runtime.backends.openvino_program import options

Run = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""From pixels [B, H, W, 3] to CLS tokens [B, D] and patch tokens [B, N, D]."""

_OUTPUTS = ("cls_token", "patch_tokens")
_PADS = {"pads_begin": np.zeros(4, np.int64), "pads_end": np.zeros(4, np.int64)}
_PHOTOS = range(4)


class _Hinted:
    """The float32 graph with the hint bf16 and some of what docs/adr/0018 adds to it."""

    def __init__(
        self, file: Path, *, sums: bool = False, positions: bool = False, norms: bool = False
    ) -> None:
        core = backend.import_openvino().Core()
        model = core.read_model(file)
        expand_attention(model)  # as in all other rows; it changes no value
        if sums:
            openvino_products.choose_onednn(model)
        if norms:
            all_norms = [each for each in model.get_ordered_ops() if each.get_type_name() == "MVN"]
            openvino_products.add_readers(model, [each.output(0) for each in all_norms])
        backend._expose_padding(model)
        float32, bf16 = (options(None, each) for each in (Precision.FP32, Precision.BF16))
        self._tables = PositionTables(core, model, float32) if positions else None
        self._request = core.compile_model(model, "CPU", bf16).create_infer_request()

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Any, ...]:
        feed: dict[str, NDArray[Any]] = {"pixels": pixels, **_PADS}
        tables = self._tables.of(feed) if self._tables else {}
        self._request.infer({**feed, **tables}, share_inputs=True)
        return tuple(self._request.get_tensor(name).data.copy() for name in _OUTPUTS)


def _run(graph: OpenVinoBackend, pixels: NDArray[np.uint8]) -> tuple[Any, ...]:
    outputs = graph.infer({"pixels": pixels}, _OUTPUTS)
    return tuple(outputs[name] for name in _OUTPUTS)


def forms(bundle: Path, shapes: Sequence[Cell]) -> dict[str, Run]:
    """Everything that is compared, float32 first.

    Raises:
        InputError: the bundle has no fp32 graph that takes pixels.
    """
    files = pixel_graphs(bundle)
    float32, int8 = files[Precision.FP32], files.get(Precision.INT8)

    def opened(file: Path, precision: Precision, *, is_prepared: bool = False) -> Run:
        graph = OpenVinoBackend(file, threads=None, precision=precision)
        for batch, size in shapes if is_prepared else ():
            graph.prepare({"pixels": np.zeros((batch, size.height, size.width, 3), np.uint8)})
        return partial(_run, graph)

    runs: dict[str, Run] = {
        "fp32": opened(float32, Precision.FP32),
        "fp32, shapes known": opened(float32, Precision.FP32, is_prepared=True),
    }
    if int8 is not None:
        runs["int8, the rest in fp32"] = opened(int8, Precision.FP32)
    if cannot_run_bf16() is not None:
        return runs
    runs |= {
        "bf16: plain hint": _Hinted(float32),
        "bf16: sums in float32": _Hinted(float32, sums=True),
        "bf16: and the position table": _Hinted(float32, sums=True, positions=True),
        "bf16: and the norms": _Hinted(float32, sums=True, positions=True, norms=True),
        "bf16: and the patch embedding, as shipped": opened(float32, Precision.BF16),
        "bf16, shapes known": opened(float32, Precision.BF16, is_prepared=True),
    }
    if int8 is not None:
        runs["int8, the rest in bf16"] = opened(int8, Precision.BF16)
        runs["int8, the rest in bf16, shapes known"] = opened(
            int8, Precision.BF16, is_prepared=True
        )
    return runs


def accuracy_table(runs: Mapping[str, Run], sizes: Sequence[ImageSize]) -> str:
    """Relative L2 and first percentile of patch tokens, worst CLS cosine."""
    names = [name for name in runs if "known" not in name][1:]
    cells: dict[str, list[str]] = {name: [] for name in names}
    worst = dict.fromkeys(names, 1.0)
    for size in sizes:
        pixels = photo_crops(_PHOTOS, size)
        want_cls, want = runs["fp32"](pixels)
        for name in names:
            cls_token, patches = runs[name](pixels)
            error = float(np.linalg.norm(patches - want) / np.linalg.norm(want))
            p1 = float(np.percentile(cosines(patches, want), 1))
            cells[name].append(f"{error:.1e}, {p1:.6f}")
            worst[name] = min(worst[name], float(cosines(cls_token, want_cls).min()))
    head = ["relative L2, p1", *map(str, sizes), "smallest CLS cosine"]
    return table(head, [[name, *cells[name], f"{worst[name]:.6f}"] for name in names])


def time_table(runs: Mapping[str, Run], shapes: Sequence[Cell], turns: int) -> str:
    """Time over the float32 time, the median and its 95 % interval."""
    columns = []
    for batch, size in shapes:
        pixels = photo_crops(range(batch), size)
        columns.append(ratios({name: partial(run, pixels) for name, run in runs.items()}, turns))
    head = ["time over float32", *(f"{batch} × {size}" for batch, size in shapes)]
    return table(head, [[name, *(shown(column[name]) for column in columns)] for name in runs])


def main() -> int:
    """Print both tables; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="precisions", description="accuracy and time of bf16 and int8 beside float32"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--cells", default="1x224,8x224,1x518", help="BATCHxSIDE to time")
    parser.add_argument("--sizes", default="224,231x345,518", help="sizes to compare tokens at")
    parser.add_argument("--turns", type=int, default=25, help="calls of each (default: 25)")
    given = parser.parse_args()
    try:
        shapes, sizes = parse_cells(given.cells), parse_sizes(given.sizes)
        runs = forms(given.bundle, shapes)
        print(accuracy_table(runs, sizes), end="\n\n", flush=True)
        print(time_table(runs, shapes, given.turns))
    except Dinov2rtError as error:
        print(f"precisions: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
