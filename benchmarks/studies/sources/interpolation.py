"""Measures how much features depend on the way in which the position table is resampled.

    python -m dinov2rt.benchmarks.studies.sources.interpolation [--weights synthetic:0]

The eager float32 model computes the photographs at some sizes, once as the official code resamples
and once as transformers or timm do, and, for models with registers, once with the settings of
`ssl_default_config.yaml`. The table has the relative L2 distance of CLS and patch tokens.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dinov2rt.bundle.accuracy import relative_l2
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.signature import NO_EXTRAS, FloatArray, InputFormat
from dinov2rt.bundle.variants import find_variant
from dinov2rt.export.golden import eager_case, golden_pixels
from dinov2rt.export.model import load_eager
from dinov2rt.export.weights.architecture import as_of_library
from dinov2rt.export.weights.checkpoint import load_weights
from dinov2rt.export.weights.state_dict import StateDict

_PLAIN, _REGISTERS = "dinov2_vits14", "dinov2_vits14_reg"
_SIZES = (ImageSize(224, 224), ImageSize(224, 308), ImageSize(98, 126), ImageSize(518, 518))
_PHOTOS = ("chelsea.jpg", "coffee.jpg")


@dataclass(frozen=True, slots=True)
class Distance:
    """The relative L2 distance between two ways to resample, at one size."""

    otherwise: str
    size: ImageSize
    cls_token: float
    patch_tokens: float


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="synthetic:0", help="of S, default: synthetic:0")
    arguments = parser.parse_args()
    print("| official code beside | size | CLS token | patch tokens |")
    print("| --- | --- | --- | --- |")
    for found in distances(arguments.weights, _SIZES):
        print(
            f"| {found.otherwise} | {found.size} | {found.cls_token:.0e} "
            f"| {found.patch_tokens:.0e} |"
        )
    return 0


def distances(weights: str, sizes: tuple[ImageSize, ...]) -> Iterator[Distance]:
    """The distance of each other way from the official code, for S, at each size."""
    for name, others in _compared().items():
        variant = find_variant(name)
        state = load_weights(weights, variant).state_dict
        for size in sizes:
            official = _tokens(variant, state, size)
            for otherwise, architecture in others.items():
                found = _tokens(architecture, state, size)
                yield Distance(
                    otherwise,
                    size,
                    relative_l2(official["cls_token"], found["cls_token"]),
                    relative_l2(official["patch_tokens"], found["patch_tokens"]),
                )


def _compared() -> dict[str, dict[str, Architecture]]:
    plain, registers = find_variant(_PLAIN), find_variant(_REGISTERS)
    own_training = replace(registers.architecture, antialias=False, offset=0.1)
    return {
        _PLAIN: {
            f"{library}, no registers": architecture
            for library in ("transformers", "timm")
            if (architecture := as_of_library(plain.architecture, library)) is not None
        },
        _REGISTERS: {"ssl_default_config.yaml, 4 registers": own_training},
    }


def _tokens(
    architecture: Architecture, state: StateDict, size: ImageSize
) -> Mapping[str, FloatArray]:
    pixels = golden_pixels(size, _PHOTOS)
    model = load_eager(architecture, state)
    return eager_case(model, str(size), pixels, InputFormat.PIXELS, NO_EXTRAS).outputs


if __name__ == "__main__":
    raise SystemExit(main())
