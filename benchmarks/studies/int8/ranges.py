"""Compares ranges of static int8 activations: from photographs alone, and from drawings as well.

    python -m dinov2rt.benchmarks.studies.int8.ranges VARIANT --weights synthetic:0 [--images 40]

Int8 products are emulated in eager PyTorch, with the weights that an export would round, so this
runs on any CPU. The others round their input to bf16. For each way to round activations, the table
has the number of products that a search leaves in bf16, and 1 - cos with it: of the worst CLS
token, and of the 99th percentile of patch tokens in the worst image. No range was measured on any
of these images.
"""

import argparse
import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dinov2rt.benchmarks.studies.turns import table
from dinov2rt.bundle.accuracy import cosines
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.limits import INT8_CLS_COSINE, INT8_TOKEN_COSINE_P1
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import Dinov2rtError
from dinov2rt.export.crops import photo_crops
from dinov2rt.export.int8.activations import Steps, rounded_in_groups, static_steps
from dinov2rt.export.int8.calibration import Calibration
from dinov2rt.export.int8.form import RANGED_ON, Form, form_of, range_images, size_of
from dinov2rt.export.int8.gptq import Int8Product
from dinov2rt.export.int8.products import products
from dinov2rt.export.int8.search import MARGIN, least_count
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.weights.checkpoint import load_weights

Pixels = NDArray[np.uint8]
"""Images [B, H, W, 3]."""

_FIRST_SEED = 1000
_COLOURS = ((255, 255, 255), (255, 255, 0), (0, 100, 120), (240, 240, 235))
_TEXTS = (
    ((255, 255, 255), (0, 0, 0)),
    ((0, 0, 0), (255, 255, 255)),
    ((230, 230, 230), (60, 60, 60)),
)
_LINE_HEIGHT = 12


@dataclass(frozen=True, slots=True)
class Lost:
    """What rounding costs: 1 - cos of the worst CLS token and of patch tokens, see above."""

    cls_token: float
    patches: float

    @property
    def holds(self) -> bool:
        """Whether a search would take it."""
        allowed = MARGIN * (1 - INT8_CLS_COSINE), MARGIN * (1 - INT8_TOKEN_COSINE_P1)
        return self.cls_token <= allowed[0] and self.patches <= allowed[1]

    def __str__(self) -> str:
        return f"{self.cls_token:.1e} / {self.patches:.1e}"


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Images [B, H, W, 3], and the eager model's tokens [N, D] for each."""

    pixels: Pixels
    want: tuple[NDArray[np.float64], ...]


def images_by_kind(model: Dinov2, count: int) -> dict[str, Images]:
    """Images that no range is measured on: `count` crops of photographs, and four other kinds."""
    size, small = size_of(model, (16, 16)), size_of(model, (7, 9))
    seeds = range(_FIRST_SEED, _FIRST_SEED + count)
    kinds = {
        "photographs": photo_crops(seeds, size),
        "small crops": photo_crops(seeds[: max(1, count // 5)], small),
        "plain colours": np.stack([_plain(size, colour) for colour in _COLOURS]),
        "text": np.stack([_text(size, *colours) for colours in _TEXTS]),
        "line drawings": np.stack([_lines(size, seed) for seed in range(4)]),
    }
    return {
        kind: Images(pixels, tuple(_tokens(model, image) for image in pixels))
        for kind, pixels in kinds.items()
    }


def _plain(size: ImageSize, colour: tuple[int, ...]) -> Pixels:
    return np.full((size.height, size.width, 3), colour, np.uint8)


def _text(size: ImageSize, back: tuple[int, ...], front: tuple[int, ...]) -> Pixels:
    random = np.random.default_rng(_FIRST_SEED)
    image = Image.new("RGB", (size.width, size.height), back)
    for top in range(0, size.height, _LINE_HEIGHT):
        letters = random.choice(list("abcdefghijklmnopqrstuvwxyz    "), size.width // 5)
        ImageDraw.Draw(image).text((2, top), "".join(letters), fill=front)
    return np.asarray(image)


def _lines(size: ImageSize, seed: int) -> Pixels:
    random = np.random.default_rng(_FIRST_SEED + seed)
    image = Image.new("RGB", (size.width, size.height), "white")
    for _ in range(20):
        ends = [int(each) for each in random.integers(min(size.height, size.width), size=4)]
        ImageDraw.Draw(image).line(ends, fill="black", width=int(random.integers(1, 4)))
    return np.asarray(image)


@dataclass(frozen=True, slots=True)
class Emulation:
    """The eager model with int8 products: static with `steps`, dynamic if there are none."""

    model: Dinov2
    form: Form
    steps: Mapping[str, Steps] | None

    def lost(self, images: Images, count: int) -> Lost:
        """What is lost if the first `count` products of the ranking are in bf16."""
        with self._rounding(count):
            got = [_tokens(self.model, image) for image in images.pixels]
        lost = [1 - cosines(*pair) for pair in zip(got, images.want, strict=True)]
        return Lost(
            max(float(each[0]) for each in lost),
            max(float(np.percentile(each[1:], 99)) for each in lost),
        )

    @contextlib.contextmanager
    def _rounding(self, count: int) -> Iterator[None]:
        rounded = self.form.products(count)
        with contextlib.ExitStack() as undo:
            for name, linear in products(self.model).items():
                rounds = self._activations(name) if name in rounded else _in_bf16
                hook = linear.register_forward_pre_hook(
                    lambda _, given, rounds=rounds: (rounds(given[0]),)
                )
                undo.callback(hook.remove)
                if name in rounded:
                    undo.callback(setattr, linear.weight, "data", linear.weight.data)
                    linear.weight.data = _dequantized(rounded[name])
            yield

    def _activations(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return rounded_in_groups if self.steps is None else self.steps[name].rounded


def _in_bf16(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.bfloat16().float()


def _dequantized(product: Int8Product) -> torch.Tensor:
    """The weight [out, in] that an int8 product multiplies by, in float32."""
    weight = product.weight.integers * product.weight.scale
    if product.steps is not None:
        weight = weight / product.steps.scale[:, None]
    return torch.from_numpy(np.ascontiguousarray(weight.T, np.float32))


@torch.inference_mode()
def _tokens(model: Dinov2, image: Pixels) -> NDArray[np.float64]:
    tokens = model.prepare_tokens(torch.from_numpy(model.normalization(image[None])))
    for block in model.blocks:
        tokens = block(tokens)
    normed: NDArray[np.float64] = model.norm(tokens)[0].double().numpy()
    return normed


def emulations(model: Dinov2) -> dict[str, Emulation]:
    """The three ways to round activations, with the weights that an export would round for each."""
    photos = Calibration.load()
    weights = {name: linear.weight.detach().numpy().T for name, linear in products(model).items()}
    photographs = itertools.islice(range_images(model, photos), len(RANGED_ON))
    ways = {
        "dynamic": None,
        "static, ranges of photographs": static_steps(model, photographs),
        "static, ranges of photographs and drawings": static_steps(
            model, range_images(model, photos)
        ),
    }
    return {
        name: Emulation(model, form_of(model, photos, weights, steps), steps)
        for name, steps in ways.items()
    }


def row(name: str, emulation: Emulation, kinds: Mapping[str, Images]) -> list[str]:
    """A row of the table: what is searched for on photographs, and what it loses on each kind."""
    searched_on = [kinds["photographs"], kinds["small crops"]]
    total = len(emulation.form.ranked)

    def holds(count: int) -> bool:
        return all(emulation.lost(images, count).holds for images in searched_on)

    count = least_count(holds, total - 1)
    lost = [str(emulation.lost(images, count)) for images in kinds.values()]
    return [name, f"{count} of {total}", *lost]


def main() -> int:
    """Print the table; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="int8.ranges", description="what static int8 loses on images unlike photographs"
    )
    parser.add_argument("variant", metavar="VARIANT")
    parser.add_argument("--weights", default="official", metavar="W", help="as for export")
    parser.add_argument("--images", type=int, default=40, help="crops of photographs (default: 40)")
    given = parser.parse_args()
    try:
        loaded = load_weights(given.weights, find_variant(given.variant))
    except Dinov2rtError as error:
        print(f"int8.ranges: {error}", file=sys.stderr)
        return error.exit_status
    model = load_eager(loaded.architecture, loaded.state_dict)
    kinds = images_by_kind(model, given.images)
    head = ["activations", "products in bf16", *kinds]
    print(table(head, [row(name, each, kinds) for name, each in emulations(model).items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
