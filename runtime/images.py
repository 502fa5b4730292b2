"""Image files as the uint8 RGB arrays that the model takes."""

import functools
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError
from dinov2rt.files import require_regular
from dinov2rt.foreign import quoted, shown
from dinov2rt.optional import require

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What `find_images` takes for an image inside a folder."""

FORMATS = (
    "AVIF",
    "BMP",
    "GIF",
    "JPEG",
    "JPEG2000",
    "PNG",
    "PPM",
    "TGA",
    "TIFF",
    "WEBP",
)
"""Formats of Pillow that are opened, whatever a file is called. Pillow knows 40 more. One of them,
EPS, is a program, which it starts Ghostscript for. A JPEG may be an MPO, as phones write them."""

_SHORT_SIDE = "short-side:"
_EXIF_ORIENTATION = 0x0112
_EXIF_QUARTER_TURNS = (5, 6, 7, 8)
_JPEG = ("JPEG", "MPO")
# Warning filters belong to the process; the lock keeps threads from restoring each other's.
_open_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image is scaled and cropped before the model; sides in pixels, None leaves it out.

    `short_side` scales the short side to this length, bicubic and antialiased, and keeps the
    aspect; `crop` then cuts a square from the centre. The arithmetic is that of torchvision's
    `Resize` and `CenterCrop`.
    """

    short_side: int | None = None
    crop: int | None = None

    @classmethod
    def parse(cls, name: str) -> Self:
        """The steps called `name`.

        "native" leaves the pixels as they are, "classification" is the official evaluation
        (`make_classification_eval_transform` in `dinov2/data/transforms.py`), and "short-side:N"
        scales alone.

        Raises:
            InputError: none of these.
        """
        if name == "native":
            return cls()
        if name == "classification":
            return cls(short_side=256, crop=224)
        side = name.removeprefix(_SHORT_SIDE)
        if side != name and side.isascii() and side.isdecimal() and int(side) > 0:
            return cls(short_side=int(side))
        raise InputError(
            f'unknown preprocess {quoted(name)}; allowed are "native", "classification" and '
            f'"{_SHORT_SIDE}N" with N pixels, such as "{_SHORT_SIDE}518"'
        )

    def _apply(self, image: "Image") -> "Image":
        if self.short_side is not None:
            image = _resize(image, _scaled(ImageSize(image.height, image.width), self.short_side))
        if self.crop is not None:
            image = _center_crop(image, self.crop)
        return image


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """`pixels` [H, W, 3], uint8, RGB.

    `scaled_from` is the size that had to be made smaller to fit, None where the image fitted.
    """

    pixels: NDArray[np.uint8]
    scaled_from: ImageSize | None = None


def load_image(
    path: Path | str | bytes | BinaryIO, preprocess: Preprocess | str = "native"
) -> NDArray[np.uint8]:
    """The image file `path`, an open one, or one in memory, as uint8 [H, W, 3], RGB, C-contiguous.

    The EXIF orientation is applied, which the official data loader leaves out. Everything else
    is its `convert("RGB")`: grey is repeated, alpha and a palette's transparency are dropped, and
    CMYK goes through Pillow's conversion. Grey of 16 bits is scaled by 255 / 65535 and rounded,
    where Pillow would clip; of colours with 16 bits Pillow delivers the high byte. Of an
    animation, the first frame is taken.

    Raises:
        InputError: missing, not an image, damaged, more pixels than `PIL.Image.MAX_IMAGE_PIXELS`,
            grey of 32 bits, or an unknown `preprocess`.
        MissingDependencyError: Pillow is not installed.
    """
    steps = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
    return load_fitted(path, steps, lambda size: size).pixels


def load_fitted(
    path: Path | str | bytes | BinaryIO,
    preprocess: Preprocess,
    fit: Callable[[ImageSize], ImageSize],
) -> LoadedImage:
    """As `load_image`, then scaled to the size that `fit` gives it, bicubic and antialiased.

    A JPEG without other steps is decoded at 1/2, 1/4 or 1/8 of its size where that is still at
    least the size that is wanted, which takes less time and memory. Images that fit, and those that
    `preprocess` scales, are decoded whole, as the official data loader does it.

    Raises:
        InputError: as `load_image`, or what `fit` raises.
        MissingDependencyError: Pillow is not installed.
    """
    image_ops = _pillow("PIL.ImageOps")
    try:
        with _open(path) as image:
            whole = _decode_smaller(image, fit) if preprocess == Preprocess() else None
            image_ops.exif_transpose(image, in_place=True)
            upright = preprocess._apply(_to_rgb(image))
            return _fitted(upright, whole or ImageSize(upright.height, upright.width), fit)
    # Pillow's decoders let through whatever a damaged file makes them trip over.
    except Exception as error:
        raise InputError(f"{shown(_name(path))} {_reason(error)}") from error


def resize(image: NDArray[np.uint8], size: ImageSize) -> NDArray[np.uint8]:
    """`image` [H, W, 3] resampled to `size`, bicubic and antialiased.

    Raises:
        InputError: `size` is beyond `PIL.Image.MAX_IMAGE_PIXELS`.
        MissingDependencyError: Pillow is not installed.
    """
    return np.array(_resize(_pillow().fromarray(image), size))


def preprocessed(image: NDArray[np.uint8], steps: Preprocess) -> NDArray[np.uint8]:
    """`image` [H, W, 3] after `steps`, as `load_image` takes them.

    Raises:
        InputError: it would have more than `PIL.Image.MAX_IMAGE_PIXELS`.
        MissingDependencyError: Pillow is not installed.
    """
    return np.array(steps._apply(_pillow().fromarray(image)))


def write_png(image: NDArray[np.uint8], file: Path) -> None:
    """Write `image` [H, W, 3] to `file`, whatever its suffix.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    _pillow().fromarray(image).save(file, format="PNG")


def check_pixels(size: ImageSize) -> None:
    """Refuse an image of `size` that Pillow would not open, before it is made.

    Raises:
        InputError: `size` is beyond `PIL.Image.MAX_IMAGE_PIXELS`.
        MissingDependencyError: Pillow is not installed.
    """
    limit = _pillow().MAX_IMAGE_PIXELS
    if limit is not None and size.pixels > limit:
        raise InputError(
            f"{size} is {size.pixels} pixels, more than the {limit} that Pillow opens; "
            "ask for fewer, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def find_images(paths: Sequence[Path | str]) -> list[Path]:
    """The images that `paths` name, each once, in the order given.

    A file is taken as it is. A folder is searched recursively in sorted order for
    `IMAGE_SUFFIXES`, following links and leaving out hidden files and folders.

    Raises:
        InputError: a path that does not exist or cannot be read, or a folder without any image.
    """
    unique: dict[str, Path] = {}
    for path in paths:
        for image in _images_at(Path(path)):
            # By its place, not its target: two links to one file are two images of a data set.
            place = os.path.join(os.path.realpath(image.parent), image.name)  # noqa: PTH118
            unique.setdefault(place, image)
    return list(unique.values())


def _images_at(path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            path.stat()
            return [path]
        images = list(_walk(path, visited=set()))
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}); give image files or folders"
        ) from error
    if not images:
        raise InputError(
            f"{path} holds no image; looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it and below"
        )
    return images


def _walk(folder: Path, visited: set[str]) -> Iterator[Path]:
    identity = os.path.realpath(folder)
    if identity in visited:
        return
    visited.add(identity)
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, visited)
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            yield entry


def _pillow(module: str = "PIL.Image") -> ModuleType:
    return require(module, extra="image", purpose="reading or writing an image file")


def _name(path: Path | str | bytes | BinaryIO) -> str:
    """What a message calls an image: never its content."""
    if isinstance(path, bytes):
        return f"an image of {len(path)} bytes in memory"
    return str(path)


def _decode_smaller(image: "Image", fit: Callable[[ImageSize], ImageSize]) -> ImageSize | None:
    """Let a JPEG be decoded at a part of its size; gives the whole size, None if it is no JPEG."""
    if image.format not in _JPEG:
        return None
    is_turned = image.getexif().get(_EXIF_ORIENTATION, 1) in _EXIF_QUARTER_TURNS
    sides = (image.width, image.height) if is_turned else (image.height, image.width)
    whole = ImageSize(*sides)
    fitted = fit(whole)
    if fitted != whole:
        turned = (fitted.height, fitted.width) if is_turned else (fitted.width, fitted.height)
        image.draft(None, turned)
    return whole


def _fitted(image: "Image", whole: ImageSize, fit: Callable[[ImageSize], ImageSize]) -> LoadedImage:
    """`image`, which was `whole` before it was decoded, at the size that `fit` gives that."""
    size = fit(whole)
    if size == whole:
        return LoadedImage(np.array(image))
    return LoadedImage(np.array(_resize(image, size)), scaled_from=whole)


def _open(path: Path | str | bytes | BinaryIO) -> "Image":
    pillow = _pillow()
    if isinstance(path, bytes):
        path = io.BytesIO(path)
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        if isinstance(path, Path | str):
            require_regular(Path(path))
        return pillow.open(path, formats=_opened_formats())  # type: ignore[no-any-return]


@functools.cache
def _opened_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    pillow = _pillow()
    pillow.init()
    return tuple(name for name in FORMATS if name in pillow.OPEN)


def _reason(error: Exception) -> str:
    pillow = _pillow()
    if isinstance(error, InputError):
        return f"cannot be used: {error}"
    if isinstance(error, pillow.UnidentifiedImageError):
        return (
            "is not an image of a format that is opened; convert it to PNG or JPEG "
            f"(opened are {', '.join(FORMATS)})"
        )
    if isinstance(error, pillow.DecompressionBombError | pillow.DecompressionBombWarning):
        return (
            f"is too large: {str(error).rstrip('.')}; make it smaller, or raise "
            f"PIL.Image.MAX_IMAGE_PIXELS (now {pillow.MAX_IMAGE_PIXELS})"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror}); give an image file"
    cause = shown(error) or type(error).__name__
    return f"cannot be decoded ({cause}); the file is damaged or cut short, get it again"


def _to_rgb(image: "Image") -> "Image":
    # Pillow reads a PNG or PGM of 16 bits as "I" or "I;16", depending on its version.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        grey = (np.asarray(image).astype(np.int32) + 128) // 257  # rounds v * 255 / 65535
        image = _pillow().fromarray(grey.astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise InputError("grey values of 32 bits have no known range; save it with 8 or 16 bits")
    # What is dropped anyway; Pillow warns about it where a palette has several transparent entries.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _scaled(size: ImageSize, short_side: int) -> ImageSize:
    short, long = sorted((size.height, size.width))
    long_side = int(short_side * long / short)
    if size.width <= size.height:
        return ImageSize(long_side, short_side)
    return ImageSize(short_side, long_side)


def _resize(image: "Image", size: ImageSize) -> "Image":
    check_pixels(size)
    return image.resize((size.width, size.height), _pillow().Resampling.BICUBIC)


def _center_crop(image: "Image", side: int) -> "Image":
    left = round((image.width - side) / 2.0)
    top = round((image.height - side) / 2.0)
    return image.crop((left, top, left + side, top + side))
