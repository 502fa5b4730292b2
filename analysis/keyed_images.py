"""Loads the image that a key of a feature dataset refers to."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import Snap
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Failure, FileSlice, Item
from dinov2rt.extraction.decoding import Decoding, decode
from dinov2rt.extraction.shards import TAR_SUFFIX, TarMember, read_parquet_images, tar_images
from dinov2rt.foreign import quoted
from dinov2rt.runtime.preprocess import Preprocess

_SHARD_KEY = re.compile(r"(?P<shard>.+?\.(?:tar|parquet))#(?P<name>.+)", re.IGNORECASE)

_WHOLE = Decoding(Preprocess(), Snap.PAD, max_pixels=2**62, patch_size=1, scale=False)
"""Neither scaled nor cropped; Pillow's own limit holds."""


def load_keyed_image(key: str, image_column: str = "image") -> NDArray[np.uint8]:
    """The image that `key`, with its root, names: uint8 [H, W, 3], RGB.

    A key is a path, or the path of a shard, `#`, and a name or row in it.

    Raises:
        InputError: the image no longer exists, or cannot be decoded.
        MissingDependencyError: Pillow, or pyarrow for a Parquet shard, is not installed.
    """
    image = decode(_item(key, image_column), _WHOLE)
    if isinstance(image, Failure):
        raise InputError(image.reason)
    return image.pixels


def split_key(key: str) -> tuple[Path | None, str]:
    """Split a key into shard and name in the shard; a key without a shard is (None, path)."""
    match = _SHARD_KEY.fullmatch(key)
    return (None, key) if match is None else (Path(match["shard"]), match["name"])


def _item(key: str, image_column: str) -> Item:
    shard, name = split_key(key)
    if shard is None or Path(key).exists():
        return Item(key, Path(key))
    if shard.suffix.lower() == TAR_SUFFIX:
        return Item(key, _tar_member(shard, name))
    return Item(key, _parquet_row(shard, name, image_column))


def _tar_member(shard: Path, name: str) -> FileSlice:
    for member in tar_images(shard):
        if member.name == name and isinstance(member, TarMember):
            return FileSlice(str(shard), member.offset, member.size_bytes)
    raise InputError(f"{shard} has no image {quoted(name)} any more")


def _parquet_row(shard: Path, name: str, column: str) -> bytes:
    row = int(name) if name.isdecimal() else -1
    content = next(read_parquet_images(shard, column, row, row + 1), None) if row >= 0 else None
    if content is None:
        raise InputError(f"{shard} has no image in row {name} any more")
    return content
