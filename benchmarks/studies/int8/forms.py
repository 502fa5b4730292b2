r"""Compares forms of int8, with all products in int8: what they cost in accuracy, and their time.

    python -m dinov2rt.benchmarks.studies.int8.forms VARIANT --weights synthetic:0 \
        [--crops 100 --cells 1x224,8x224,1x518 --turns 25]

Activations are rounded dynamically or statically (see `export/int8/activations.py`), and everything
else is in fp32 or bf16. Accuracy is measured on crops of 224 x 224 that no export uses, relative to
the float32 graph: 1 - cos of CLS tokens, and the first percentile of the cosines of patch tokens.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dinov2rt.benchmarks.studies.turns import Cell, parse_cells, ratios, shown, table
from dinov2rt.bundle.accuracy import cosines
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import Dinov2rtError
from dinov2rt.export.crops import photo_crops
from dinov2rt.export.folding import fold, fold_norms, split_qkv
from dinov2rt.export.frontend import attach_pixel_input
from dinov2rt.export.graph import ExportGraph
from dinov2rt.export.int8.activations import Activations
from dinov2rt.export.int8.calibration import Calibration
from dinov2rt.export.int8.form import make_form
from dinov2rt.export.model import load_eager
from dinov2rt.export.trace import trace
from dinov2rt.export.weights.checkpoint import load_weights
from dinov2rt.runtime.backends.openvino import OpenVinoBackend

Run = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], ...]]
"""From pixels [B, H, W, 3] to CLS tokens [B, D] and patch tokens [B, N, D]."""

_FIRST_SEED = 1000
_SIZE = ImageSize(224, 224)
_OUTPUTS = ("cls_token", "patch_tokens")


def runs(variant: str, weights: str, folder: Path) -> dict[str, Run]:
    """Every form in OpenVINO, float32 first; their graphs are written into `folder`."""
    loaded = load_weights(weights, find_variant(variant))
    eager = load_eager(loaded.architecture, loaded.state_dict)
    model = trace(ExportGraph(loaded.architecture, loaded.state_dict).eval())
    fold(model, loaded.architecture)
    attach_pixel_input(model, loaded.architecture.normalization)
    float32, photos = model.clone(), Calibration.load()
    fold_norms(float32)
    split_qkv(float32)
    graphs = {"fp32": _save(float32, folder, "fp32")}
    for activations in Activations:
        form = make_form(model, eager, photos, activations)
        graphs[activations] = _save(form.build(model, 0), folder, activations)
    opened = {"fp32": _open(graphs["fp32"], Precision.FP32)}
    opened["bf16"] = _open(graphs["fp32"], Precision.BF16)
    for activations in Activations:
        for rest in (Precision.FP32, Precision.BF16):
            name = f"int8, {activations} activations, the rest in {rest}"
            opened[name] = _open(graphs[activations], rest)
    return opened


def _save(model: ir.Model, folder: Path, name: str) -> Path:
    ir.save(model, folder / f"{name}.onnx", external_data=f"{name}.onnx.data")
    return folder / f"{name}.onnx"


def _open(file: Path, precision: Precision) -> Run:
    backend = OpenVinoBackend(file, threads=None, precision=precision)

    def run(pixels: NDArray[np.uint8]) -> tuple[Any, ...]:
        outputs = backend.infer({"pixels": pixels}, _OUTPUTS)
        return tuple(outputs[name] for name in _OUTPUTS)

    return run


def accuracy(run: Run, want: Sequence[tuple[Any, ...]], crops: NDArray[np.uint8]) -> list[str]:
    """Mean and largest 1 - cos of CLS tokens; first percentile of patch tokens, the worst crop's.

    `want` are the CLS and patch tokens of each crop.
    """
    lost, p1 = [], []
    for image, (want_cls, want_patches) in zip(crops, want, strict=True):
        cls_token, patches = run(image[None])
        lost.append(1 - float(cosines(cls_token, want_cls).min()))
        p1.append(float(np.percentile(cosines(patches, want_patches), 1)))
    return [f"{np.mean(lost):.1e}", f"{max(lost):.1e}", f"{min(p1):.5f}"]


def compare(forms: Mapping[str, Run], crops: int, cells: Sequence[Cell], turns: int) -> str:
    """Accuracy of each form on `crops` crops, and its time over the float32 time at `cells`."""
    pixels = photo_crops(range(_FIRST_SEED, _FIRST_SEED + crops), _SIZE)
    want = [forms["fp32"](image[None]) for image in pixels]
    columns = []
    for batch, size in cells:
        images = photo_crops(range(batch), size)
        columns.append(ratios({name: partial(run, images) for name, run in forms.items()}, turns))
    head = ["", "CLS, mean 1 − cos", "largest", "patch p1", *(f"{n} × {size}" for n, size in cells)]
    rows = [
        [name, *accuracy(run, want, pixels), *(shown(column[name]) for column in columns)]
        for name, run in forms.items()
    ]
    return table(head, rows)


def main() -> int:
    """Print the table; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="int8.forms", description="accuracy and time of forms of int8 beside float32"
    )
    parser.add_argument("variant", metavar="VARIANT")
    parser.add_argument("--weights", default="official", metavar="W", help="as for export")
    parser.add_argument("--crops", type=int, default=100, help="crops to compare (default: 100)")
    parser.add_argument("--cells", default="1x224,8x224,1x518", help="BATCHxSIDE to time")
    parser.add_argument("--turns", type=int, default=25, help="calls of each (default: 25)")
    given = parser.parse_args()
    try:
        cells = parse_cells(given.cells)
        with tempfile.TemporaryDirectory() as folder:
            forms = runs(given.variant, given.weights, Path(folder))
            print(compare(forms, given.crops, cells, given.turns))
    except Dinov2rtError as error:
        print(f"int8.forms: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
