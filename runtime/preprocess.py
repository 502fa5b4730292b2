"""The preprocessing of an image, as text and as steps."""

import re
from dataclasses import dataclass, replace
from typing import Self

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

_NAMED = {"native": "native", "classification": "short-side:256,crop:224"}
_COLOURS: dict[str, Colour] = {"white": (255, 255, 255), "black": (0, 0, 0)}
_SIDE = r"([1-9][0-9]{0,5})"
_STEPS = re.compile(
    rf"(?:native|short-side:{_SIDE}|resize:{_SIDE}x{_SIDE})?"
    rf"(?:(?:^|,)(floor-)?crop:{_SIDE})?(?:(?:^|,)background:#([0-9a-f]{{6}}))?"
)
_ALLOWED = (
    '"native", "classification", or steps: "short-side:N" or "resize:HxW", "crop:N" or '
    '"floor-crop:N", and "background:#rrggbb", such as "short-side:256,crop:224" or '
    '"resize:518x518"'
)


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image is scaled and cropped before the model; sides in pixels, None leaves it out.

    `background` is the colour behind transparent pixels; if it is None, transparency is dropped and
    the pixels keep their colours. `short_side` scales the short side to this length and keeps the
    aspect ratio, `resize` scales to a size and ignores the aspect ratio; both are bicubic and
    antialiased. `crop` then cuts a square from the centre, black where the image is smaller. The
    arithmetic is the same as in torchvision's `Resize` and `CenterCrop`. If the margins are uneven,
    that rounds half a pixel to even; with `crop_floors`, the crop starts half a pixel earlier, as
    in transformers.
    """

    short_side: int | None = None
    crop: int | None = None
    resize: ImageSize | None = None
    background: Colour | None = None
    crop_floors: bool = False

    @classmethod
    def parse(cls, name: str) -> Self:
        """The steps of `name`; a list of steps has this order: scale, crop, background.

        "native" does not change the pixels, "classification" is the official evaluation
        (`make_classification_eval_transform` in `dinov2/data/transforms.py`).

        Raises:
            InputError: `name` is unknown.
        """
        steps = ",".join(_NAMED.get(part, part) for part in name.split(","))
        match = _STEPS.fullmatch(steps)
        if not steps or match is None:
            raise InputError(f"unknown preprocess {quoted(name)}; allowed are {_ALLOWED}")
        short_side, height, width, floor, crop, background = match.groups()
        return cls(
            short_side=int(short_side) if short_side else None,
            crop=int(crop) if crop else None,
            resize=ImageSize(int(height), int(width)) if height else None,
            background=_from_hex(background) if background else None,
            crop_floors=floor is not None,
        )

    @property
    def name(self) -> str:
        """The name of these steps, for `parse`."""
        steps = []
        if self.short_side is not None:
            steps.append(f"short-side:{self.short_side}")
        if self.resize is not None:
            steps.append(f"resize:{self.resize}")
        if self.crop is not None:
            steps.append(f"{'floor-' if self.crop_floors else ''}crop:{self.crop}")
        named = {steps: name for name, steps in _NAMED.items()}
        text = ",".join(steps) or "native"
        scaling = named.get(text, text)
        if self.background is None:
            return scaling
        return f"{scaling},background:#{bytes(self.background).hex()}"

    @property
    def keeps_size(self) -> bool:
        """Whether an image is neither scaled nor cropped."""
        return self.short_side is None and self.resize is None and self.crop is None

    def scaled(self, size: ImageSize) -> ImageSize:
        """The size that an image of `size` is scaled to."""
        if self.resize is not None:
            return self.resize
        if self.short_side is None:
            return size
        short, long = sorted((size.height, size.width))
        long_side = int(self.short_side * long / short)
        if size.width <= size.height:
            return ImageSize(long_side, self.short_side)
        return ImageSize(self.short_side, long_side)

    def crop_start(self, side: int) -> int:
        """The crop's first pixel on an axis of `side` pixels; below 0, black pixels come first.

        Source: `center_crop` in torchvision and in transformers (`image_transforms.py`).
        """
        margin = side - (side if self.crop is None else self.crop)
        if self.crop_floors:
            return margin // 2
        return round(margin / 2) if margin >= 0 else -(-margin // 2)

    def on(self, background: str | None) -> Self:
        """The same steps with a `background`: white, black or R,G,B; None does not change it.

        Raises:
            InputError: `background` is not one of these.
        """
        return self if background is None else replace(self, background=_colour(background))


def _from_hex(digits: str) -> Colour:
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def _colour(text: str) -> Colour:
    if text in _COLOURS:
        return _COLOURS[text]
    parts = text.split(",")
    if len(parts) == 3 and all(re.fullmatch(r"[0-9]{1,3}", part) for part in parts):
        red, green, blue = map(int, parts)
        if max(red, green, blue) <= 255:
            return red, green, blue
    raise InputError(
        f"unknown background {quoted(text)}; allowed are {', '.join(_COLOURS)} and R,G,B with "
        "numbers from 0 to 255, such as 255,255,255"
    )
