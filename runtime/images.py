"""Image files as the uint8 RGB arrays that the model takes."""

import contextlib
import functools
import io
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import InputError, MissingDependencyError
from dinov2rt.files import open_regular, require_regular
from dinov2rt.foreign import shown
from dinov2rt.optional import require
from dinov2rt.runtime.image_search import SUFFIXES
from dinov2rt.runtime.preprocess import Colour, Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = tuple(SUFFIXES)
"""Formats of Pillow that are opened, whatever a file is called. Pillow knows 40 more. One of them,
EPS, is a program, which it starts Ghostscript for. A JPEG may be an MPO, as phones write them. HEIF
is opened through pillow-heif, where it is installed."""

_EXIF_ORIENTATION = 0x0112
_EXIF_QUARTER_TURNS = (5, 6, 7, 8)
_JPEG = ("JPEG", "MPO")
_HEAD_BYTES = 32
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_OPAQUE = 255
# Warning filters belong to the process; the lock keeps threads from restoring each other's.
_open_lock = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """`pixels` [H, W, 3], uint8, RGB.

    `scaled_from` is the original size of an image that was scaled to fit, otherwise None.
    `lost_transparency` is set if the image had transparent pixels; transparency is dropped.
    """

    pixels: NDArray[np.uint8]
    scaled_from: ImageSize | None = None
    lost_transparency: bool = False


def load_image(
    path: "Path | str | bytes | BinaryIO | Image", preprocess: Preprocess | str = "native"
) -> NDArray[np.uint8]:
    """The image file `path`, an open one, or one in memory, as uint8 [H, W, 3], RGB, C-contiguous.

    The EXIF orientation is applied, which the official data loader leaves out. Everything else
    is its `convert("RGB")`: grey is repeated, transparency is dropped unless `preprocess` has a
    background, and CMYK goes through Pillow's conversion. Grey of 16 bits is scaled by 255 / 65535
    and rounded, where Pillow would clip; of colours with 16 bits Pillow delivers the high byte. Of
    an animation, the first frame is taken.

    Raises:
        InputError: missing, not an image, damaged, more pixels than `PIL.Image.MAX_IMAGE_PIXELS`,
            grey of 32 bits, or an unknown `preprocess`.
        MissingDependencyError: Pillow is not installed.

    Example:
        >>> dinov2rt.load_image("photos/a.jpg").shape
        (90, 120, 3)
        >>> dinov2rt.load_image(Path("photos/a.jpg").read_bytes(), "classification").shape
        (224, 224, 3)
    """
    steps = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
    return load_fitted(path, steps, lambda size: size).pixels


def load_fitted(
    path: "Path | str | bytes | BinaryIO | Image",
    preprocess: Preprocess,
    fit: Callable[[ImageSize], ImageSize],
) -> LoadedImage:
    """Load an image like `load_image`, and scale it to the size that `fit` returns for it.

    Scaling is bicubic and antialiased. A JPEG without other steps is decoded at 1/2, 1/4 or 1/8 of
    its size if that is at least the requested size, which takes less time and memory. Images that
    fit, and images that `preprocess` scales, are decoded in full, as in the official data loader.

    Raises:
        InputError: as `load_image`, or what `fit` raises.
        MissingDependencyError: Pillow is not installed.
    """
    image_ops = _pillow("PIL.ImageOps")
    try:
        with _open(path) as image:
            whole = _decode_smaller(image, fit) if preprocess.keeps_size else None
            image_ops.exif_transpose(image, in_place=True)
            is_lost = preprocess.background is None and _is_transparent(image)
            upright = _applied(preprocess, _to_rgb(image, preprocess.background))
            whole = whole or ImageSize(upright.height, upright.width)
            return replace(_fitted(upright, whole, fit), lost_transparency=is_lost)
    # Pillow's decoders let through whatever a damaged file makes them trip over.
    except Exception as error:
        raise InputError(f"{shown(_name(path))} {_reason(error, path)}") from error


def as_pillow(image: NDArray[np.uint8]) -> "Image":
    """`image` [H, W, 3] as a Pillow image.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    return _pillow().fromarray(image)  # type: ignore[no-any-return]


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
    return np.array(_applied(steps, _pillow().fromarray(image)))


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


def _pillow(module: str = "PIL.Image") -> ModuleType:
    return require(module, extra="image", purpose="reading or writing an image file")


def _name(path: "Path | str | bytes | BinaryIO | Image") -> str:
    """The name of an image in messages, which never holds its content."""
    if isinstance(path, bytes):
        return f"an image of {len(path)} bytes in memory"
    if _is_pillow(path):
        return f"the Pillow image of mode {path.mode}"
    return str(path)


def _is_pillow(path: object) -> TypeGuard["Image"]:
    return isinstance(path, _pillow().Image)


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


def _applied(steps: Preprocess, image: "Image") -> "Image":
    size = ImageSize(image.height, image.width)
    scaled = steps.scaled(size)
    image = image if scaled == size else _resize(image, scaled)
    return image if steps.crop is None else _center_crop(image, steps, steps.crop)


def _open(path: "Path | str | bytes | BinaryIO | Image") -> "Image":
    if _is_pillow(path):
        return path.copy()  # later steps work in place, and must not change the caller's image
    file = io.BytesIO(path) if isinstance(path, bytes) else path
    return _open_file(cast("Path | str | BinaryIO", file))


def _open_file(path: Path | str | BinaryIO) -> "Image":
    pillow = _pillow()
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        if isinstance(path, Path | str):
            require_regular(Path(path))
        try:
            return pillow.open(path, formats=_opened_formats())  # type: ignore[no-any-return]
        except pillow.UnidentifiedImageError:
            if not _is_heif(path) or "HEIF" in _opened_formats():
                raise
            raise InputError(
                "HEIC needs the package pillow-heif; pip install 'dinov2rt[heif]', or convert it "
                "to PNG or JPEG"
            ) from None


@functools.cache
def _opened_formats() -> tuple[str, ...]:
    """The formats of `FORMATS` that this Pillow reads, by itself or with a plugin."""
    pillow = _pillow()
    pillow.init()
    with contextlib.suppress(MissingDependencyError):
        plugin = require("pillow_heif", extra="heif", purpose="reading HEIC")
        plugin.register_heif_opener()
    return tuple(name for name in FORMATS if name in pillow.OPEN)


def _is_heif(path: Path | str | BinaryIO) -> bool:
    """Whether the file begins as a phone's HEIC does: a box called `ftyp`, and a brand."""
    head = _head(path)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _head(path: Path | str | BinaryIO) -> bytes:
    """The first bytes of a file."""
    if isinstance(path, Path | str):
        with open_regular(Path(path)) as file:
            return file.read(_HEAD_BYTES)
    path.seek(0)
    return path.read(_HEAD_BYTES)


def _other_format(path: Any) -> str | None:
    """A format of Pillow that is not opened and that the file begins as, such as EPS."""
    head = path[:_HEAD_BYTES] if isinstance(path, bytes) else _head(path)
    for name, (_, accepts) in _pillow().OPEN.items():
        with contextlib.suppress(IndexError, TypeError, struct.error):  # of a file that is short
            if accepts is not None and accepts(head) and name not in FORMATS:
                return str(name)
    return None


def _reason(error: Exception, path: Any) -> str:
    pillow = _pillow()
    if isinstance(error, InputError):
        return f"cannot be used: {error}"
    if isinstance(error, pillow.UnidentifiedImageError):
        other = _other_format(path)
        return (
            f"is {f'{other}, ' if other else ''}not an image of a format that is opened; convert "
            "it to PNG or JPEG "
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


def _is_transparent(image: "Image") -> bool:
    """Whether any pixel is not opaque, or may not be."""
    if not image.has_transparency_data:
        return False
    if image.mode in ("RGBA", "LA"):
        return bool(np.asarray(image.getchannel("A")).min() < _OPAQUE)
    return True


def _to_rgb(image: "Image", background: Colour | None) -> "Image":
    # Pillow reads a PNG or PGM of 16 bits as "I" or "I;16", depending on its version.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        if background is not None and image.has_transparency_data:
            raise InputError("grey of 16 bits with transparency has no background; save it as RGBA")
        grey = (np.asarray(image).astype(np.int32) + 128) // 257  # rounds v * 255 / 65535
        image = _pillow().fromarray(grey.astype(np.uint8))
    elif image.mode in {"I", "F"}:
        raise InputError("grey values of 32 bits have no known range; save it with 8 or 16 bits")
    if background is not None and image.has_transparency_data:
        image = _composited(image.convert("RGBA"), background)
    # Transparency is dropped anyway, and Pillow warns of palettes with several transparent entries.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _composited(image: "Image", background: Colour) -> "Image":
    pillow = _pillow()
    behind = pillow.new("RGBA", image.size, (*background, _OPAQUE))
    return pillow.alpha_composite(behind, image)  # type: ignore[no-any-return]


def _resize(image: "Image", size: ImageSize) -> "Image":
    check_pixels(size)
    return image.resize((size.width, size.height), _pillow().Resampling.BICUBIC)


def _center_crop(image: "Image", steps: Preprocess, side: int) -> "Image":
    left, top = steps.crop_start(image.width), steps.crop_start(image.height)
    return image.crop((left, top, left + side, top + side))
