"""Prints the tables of docs/adr/0005: `python -m dinov2rt.benchmarks.studies.precision_study -h`.

All errors are relative to the eager float32 model, on synthetic weights and the photographs that
ship with the project. Half precision is emulated on the CPU.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from dinov2rt.benchmarks.studies.emulation import emulated
from dinov2rt.benchmarks.studies.precision_candidates import (
    CHOSEN,
    INTO_FLOAT,
    INTO_HALF,
    TypedForm,
)
from dinov2rt.bundle.accuracy import cosines, relative_l2
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.normalization import normalize
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import NO_EXTRAS, FloatArray
from dinov2rt.bundle.variants import Variant, find_variant
from dinov2rt.export.golden import eager_outputs, golden_pixels
from dinov2rt.export.graph import ExportGraph
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.trace import trace
from dinov2rt.export.weights.state_dict import StateDict
from dinov2rt.export.weights.synthetic import synthetic_state_dict

_PHOTOS = {224: ("astronaut.jpg", "coffee.jpg"), 518: ("hubble.jpg",)}
_TORCH_TYPES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}

Outputs = dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """The error of a graph, or of torch autocast, on square images of `size` pixels.

    `patch_l2` is the relative L2 error of the patch tokens, `worst_l2` the largest over all
    outputs, `cosine_min` the smallest cosine over all tokens of all outputs.
    """

    variant: str
    name: str
    size: int
    patch_l2: float
    worst_l2: float
    cosine_min: float

    @classmethod
    def of(cls, variant: Variant, name: str, size: int, got: Outputs, want: Outputs) -> "ErrorRow":
        """Compare `got` with `want`."""
        errors = {key: relative_l2(got[key], want[key]) for key in want}
        cosine = min(float(cosines(got[key], want[key]).min()) for key in want)
        # numpy's maximum lets a NaN through, Python's does not.
        worst = float(np.max(list(errors.values())))
        return cls(variant.name, name, size, errors["patch_tokens"], worst, cosine)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table as Markdown, or as JSON."""
    parser = argparse.ArgumentParser(prog="precision_study", description=__doc__)
    parser.add_argument("table", choices=("candidates", "variants"))
    parser.add_argument("variants", nargs="+", metavar="VARIANT")
    parser.add_argument("--sizes", type=int, nargs="+", choices=_PHOTOS, default=list(_PHOTOS))
    parser.add_argument("--precision", type=Precision.parse, default=Precision.FP16)
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic weights")
    parser.add_argument("--small-gamma", action="store_true", help="γ log-uniform from 1e-5 to 1")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    candidates = (CHOSEN,) if arguments.table == "variants" else (CHOSEN, *INTO_HALF, *INTO_FLOAT)
    rows: list[ErrorRow] = []
    for name in arguments.variants:
        variant = find_variant(name)
        state = synthetic_state_dict(variant, arguments.seed)
        if arguments.small_gamma:
            draw_small_gamma(state)
        rows += study(variant, state, arguments.sizes, arguments.precision, candidates)
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else markdown(rows))


def study(
    variant: Variant,
    state: StateDict,
    sizes: Sequence[int],
    precision: Precision,
    candidates: Sequence[TypedForm],
) -> Iterator[ErrorRow]:
    """A row for torch's autocast and for each candidate, at each size."""
    images = {
        size: normalize(golden_pixels(ImageSize(size, size), _PHOTOS[size])) for size in sizes
    }
    model = load_eager(variant, state)
    wanted = {size: _eager(model, images[size]) for size in sizes}
    for size in sizes:
        with torch.autocast("cpu", dtype=_TORCH_TYPES[precision]):
            got = _eager(model, images[size])
        yield ErrorRow.of(variant, "torch autocast", size, got, wanted[size])
    del model
    traced = trace(ExportGraph(variant, state).eval())
    for candidate in candidates:
        outputs = emulated(candidate.build(traced, variant, precision))
        for size in sizes:
            yield ErrorRow.of(variant, candidate.name, size, outputs(images[size]), wanted[size])


def draw_small_gamma(state: StateDict) -> None:
    """Scale γ by a log-uniform factor from 5e-5 to 5, in place, as in trained models.

    The γ of channels with massive activations stays, because 300 / γ would overflow half formats.
    """
    rng = np.random.default_rng(0)
    for key in (key for key in state if key.endswith(".gamma")):
        factor = 10 ** rng.uniform(-4.3, 0.7, state[key].shape)
        dim = len(factor)
        factor[[dim // 7, 5 * dim // 11]] = 1.0
        state[key] *= torch.from_numpy(factor).float()


def markdown(rows: Sequence[ErrorRow]) -> str:
    """A table with one line per row, which also has the row's error over the error of autocast."""
    autocast = {
        (row.variant, row.size): row.patch_l2 for row in rows if row.name == "torch autocast"
    }
    lines = [
        "| variant | what | size | patch tokens, relative L2 "
        "| to autocast | worst output | 1 - cosine |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.variant} | {row.name} | {row.size} | {row.patch_l2:.2e} "
        f"| {row.patch_l2 / autocast[row.variant, row.size]:.2f} "
        f"| {row.worst_l2:.2e} | {1 - row.cosine_min:.1e} |"
        for row in rows
    ]
    return "\n".join(lines)


def _eager(model: Dinov2, images: FloatArray) -> Outputs:
    return eager_outputs(model, torch.from_numpy(images), NO_EXTRAS)


if __name__ == "__main__":
    main()
