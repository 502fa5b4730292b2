r"""Measures the effect of int8 on search: cosines to float32, and changes of nearest neighbours.

    python -m dinov2rt.benchmarks.studies.int8.quality BUNDLE \
        [--crops 200 --size 224 --photos FOLDER]

Both graphs of the bundle run on the same crops of photographs, one at a time; the photographs
come with the project, or from FOLDER. A crop's nearest neighbour is the other crop whose CLS
token has the highest cosine. Each graph's tokens are compared with each other, as in a search index
that is built from that graph.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.accuracy import cosines, nearest_lost
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.limits import NEAREST_TIE
from dinov2rt.bundle.signature import FloatArray, InputFormat
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.export.crops import PHOTOS, photo_crops
from dinov2rt.runtime.model import Model, load

_FIRST_SEED = 1000  # far from the crops that the export searched and checked on


@dataclass(frozen=True, slots=True)
class Quality:
    """Int8 against float32 over all crops.

    `patch_cosine_p1` is the first percentile over the patch tokens of all crops,
    `patch_cosine_p1_min` the smallest first percentile of a crop. `same_nearest` counts the crops
    whose nearest neighbour is the same, `kept_nearest` those where its cosine is lower by at most
    `NEAREST_TIE`. `mean_margin` is the mean difference in cosine between the nearest and the second
    nearest neighbour, in float32.
    """

    bundle: str
    variant: str
    float32_products: tuple[str, ...]
    crops: int
    size: int
    cls_cosine_min: float
    cls_cosine_mean: float
    patch_cosine_p1: float
    patch_cosine_p1_min: float
    same_nearest: int
    kept_nearest: int
    mean_margin: float

    def __str__(self) -> str:
        kept = ", ".join(self.float32_products) or "no product"
        return "\n".join(
            (
                f"{self.variant}, {self.crops} crops of {self.size} x {self.size}, {kept} float32",
                f"CLS tokens, smallest cosine         {self.cls_cosine_min:.6f}",
                f"CLS tokens, mean cosine             {self.cls_cosine_mean:.6f}",
                f"patch tokens, first percentile      {self.patch_cosine_p1:.6f}",
                f"patch tokens, same of worst crop    {self.patch_cosine_p1_min:.6f}",
                f"same nearest neighbour              {self.same_nearest} of {self.crops}"
                f" ({self.same_nearest / self.crops:.1%})",
                f"nearest, or within {NEAREST_TIE} of it      {self.kept_nearest} of {self.crops}"
                f" ({self.kept_nearest / self.crops:.1%})",
                f"float32's nearest over its second   {self.mean_margin:.6f} in cosine, on average",
            )
        )


def measure(bundle: Path, *, crops: int, size: int, photos: Path) -> Quality:
    """Run both graphs on `crops` square crops of `size` pixels a side, of images in `photos`.

    Raises:
        InputError: there are fewer than three crops or no images, or the size is below 1.
        Dinov2rtError: the bundle cannot be loaded; see `load`.
    """
    if crops < 3 or size < 1:
        raise InputError(f"crops {crops}, size {size}; the minimums are 3 and 1")
    seeds = range(_FIRST_SEED, _FIRST_SEED + crops)
    pixels = photo_crops(seeds, ImageSize(size, size), photos)
    with load(bundle, device="cpu", backend="onnxruntime", precision="fp32") as model:
        want_cls, want_patches = _tokens(model, pixels)
    with load(bundle, device="cpu", backend="openvino", precision="int8") as model:
        got_cls, got_patches = _tokens(model, pixels)
        entry, variant = model.graph.quantization, model.manifest.name
    cls_cosines = cosines(got_cls, want_cls)
    patch_cosines = cosines(got_patches, want_patches)
    lost = nearest_lost(got_cls, want_cls)
    return Quality(
        bundle=str(bundle),
        variant=variant,
        float32_products=entry.float32 if entry else (),
        crops=crops,
        size=size,
        cls_cosine_min=float(cls_cosines.min()),
        cls_cosine_mean=float(cls_cosines.mean()),
        patch_cosine_p1=float(np.percentile(patch_cosines, 1)),
        patch_cosine_p1_min=float(np.percentile(patch_cosines, 1, axis=1).min()),
        same_nearest=int((lost == 0).sum()),
        kept_nearest=int((lost <= NEAREST_TIE).sum()),
        mean_margin=_mean_margin(want_cls),
    )


def _tokens(model: Model, pixels: NDArray[np.uint8]) -> tuple[FloatArray, FloatArray]:
    """CLS [B, D] and patch tokens [B, P, D], computed one image at a time."""
    features = [
        model(
            image[None]
            if model.graph.input_name == InputFormat.PIXELS
            else model.manifest.normalization(image[None])
        )
        for image in pixels
    ]
    patches = np.concatenate([each.patch_tokens for each in features])
    return (
        np.concatenate([each.cls_token for each in features]),
        patches.reshape(len(pixels), -1, patches.shape[-1]),
    )


def _mean_margin(cls_tokens: FloatArray) -> float:
    """The mean difference in cosine between each row's nearest and second nearest."""
    unit = _unit(cls_tokens)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    second, first = np.partition(similarity, -2, axis=1)[:, -2:].T
    return float((first - second).mean())


def _unit(tokens: FloatArray) -> NDArray[np.float64]:
    wide = tokens.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=-1, keepdims=True))


def main() -> int:
    """Print the comparison; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="int8.quality", description="compare the int8 graph's features with float32's"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--crops", type=int, default=200, help="number of crops (default: 200)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument(
        "--photos", type=Path, default=PHOTOS, metavar="FOLDER", help="photographs to crop"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    try:
        result = measure(given.bundle, crops=given.crops, size=given.size, photos=given.photos)
    except Dinov2rtError as error:
        print(f"int8.quality: {error}", file=sys.stderr)
        return error.exit_status
    print(json.dumps(asdict(result), indent=2) if given.json else result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
