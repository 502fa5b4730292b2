"""The features of one image, as a row of a file, and checks of what a file of others claims."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.errors import InputError
from dinov2rt.foreign import shown
from dinov2rt.optional import require

Float32Array = NDArray[np.float32]

KEY = "key"
TOKEN_COLUMNS = (
    "cls_token",
    "register_tokens",
    "layer_cls_tokens",
    "patch_mean",
    "patch_tokens",
)


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """The features of one image; all arrays are float32.

    `key` is the image's path, or the path of its shard with "#" and its name or row there. `size`
    is the size of the model's input, before it was snapped to `grid`. `scaled_from` is its size
    before it was scaled to fit `max_pixels`, or None if it fitted. `lost_transparency` says that
    transparency was dropped; it is not stored.
    Shapes: `cls_token` [D], `register_tokens` [R, D] (R is 0 for variants without registers),
    `patch_mean` [D], `patch_tokens` [P, D] row-major over the grid, or None to leave them out, and
    `layer_cls_tokens` [L, D], the CLS tokens of intermediate blocks, or None to leave them out.
    """

    key: str
    size: ImageSize
    grid: Grid
    cls_token: Float32Array
    register_tokens: Float32Array
    patch_mean: Float32Array
    patch_tokens: Float32Array | None = None
    layer_cls_tokens: Float32Array | None = None
    scaled_from: ImageSize | None = None
    lost_transparency: bool = False


@dataclass(frozen=True, slots=True)
class ScaledImages:
    """The number of images that were scaled to fit, with the smallest and largest original size."""

    count: int = 0
    smallest: ImageSize | None = None
    largest: ImageSize | None = None

    @classmethod
    def of(cls, sizes: Sequence[ImageSize]) -> Self:
        """The summary of images with these original sizes."""
        if not sizes:
            return cls()
        by_pixels = sorted(sizes, key=lambda size: (size.pixels, size))
        return cls(len(sizes), by_pixels[0], by_pixels[-1])

    def __add__(self, other: Self) -> Self:
        ends = [self.smallest, self.largest, other.smallest, other.largest]
        both = self.of([size for size in ends if size is not None])
        return replace(both, count=self.count + other.count)


SIZE_COLUMNS = (
    "height",
    "width",
    "scaled_from_height",
    "scaled_from_width",
    "grid_rows",
    "grid_cols",
)
"""The names of the size columns in every output, in the order of `sizes`."""

_MAY_BE_NULL = SIZE_COLUMNS[2:4]
_UNDECODABLE = re.compile(r"\\u(dc[89a-f][0-9a-f])")
"""The escape of a lone surrogate, with which Python stands for a byte that is not UTF-8."""


def sizes(row: ImageFeatures) -> tuple[int | None, ...]:
    """The values for `SIZE_COLUMNS`; the original size is None if the image was not scaled."""
    scaled_from = row.scaled_from
    before = (None, None) if scaled_from is None else (scaled_from.height, scaled_from.width)
    return (row.size.height, row.size.width, *before, row.grid.rows, row.grid.cols)


def as_unicode(key: str) -> str:
    """`key` with escapes instead of lone surrogates, which encode undecodable bytes of a name."""
    return key.encode("utf-8", "backslashreplace").decode("utf-8")


def existing(path: str) -> Path:
    """The file or folder that `as_unicode` wrote as `path`.

    A path without escapes, or one that exists as it is written, is itself.
    """
    written = Path(path)
    if _UNDECODABLE.search(path) is None or written.exists():
        return written
    return Path(_UNDECODABLE.sub(lambda escape: chr(int(escape[1], 16)), path))


def alike(rows: Iterable[ImageFeatures]) -> Iterator[ImageFeatures]:
    """Yield `rows`, and check that there is at least one and that all have the same layout.

    Raises:
        InputError: there is no row, or the rows come from different models.
    """
    first = None
    for row in rows:
        first = first or row
        if _layout(row) != _layout(first):
            raise InputError(
                f"{row.key} has {_layout(row)}, but {first.key} has {_layout(first)}; "
                "write the features of one model to one file"
            )
        yield row
    if first is None:
        raise InputError("there are no features to write; give at least one image")


def _layout(row: ImageFeatures) -> str:
    patches = "no" if row.patch_tokens is None else "with"
    registers, width = len(row.register_tokens), row.cls_token.shape[-1]
    return f"{registers} registers, width {width}, {patches} patch tokens"


class Facts(dict[str, str]):
    """The metadata of features; to ask for a fact that is missing is an error of the file."""

    def __missing__(self, key: str) -> str:
        raise InputError(f"the features do not say their {key}; compute them again: dinov2rt run")


def check_columns(place: object, schema: Any, needed: Iterable[str] = ()) -> None:
    """Check the columns of `schema` that features have, and that the `needed` ones are there.

    Raises:
        InputError: a column is missing, is there twice, or holds something else.
    """
    names: list[str] = schema.names
    if missing := [name for name in needed if name not in names]:
        raise _refusal(place, f"there is no column {missing[0]}")
    for name, holds in _kinds().items():
        if names.count(name) > 1:
            raise _refusal(place, f"several columns are named {name}")
        if name in names and not holds(schema.field(name).type):
            found = shown(schema.field(name).type)
            raise _refusal(place, f"the column {name} holds {found}")


def check_filled(place: object, batch: Any) -> None:
    """Check that the columns of `batch` hold values where features have them.

    Raises:
        InputError: one is null.
    """
    for name in (KEY, *SIZE_COLUMNS, *TOKEN_COLUMNS):
        if name in batch.schema.names and name not in _MAY_BE_NULL and batch[name].null_count:
            raise _refusal(place, f"the column {name} has empty cells")


def check_row(place: object, row: ImageFeatures) -> None:
    """Check that the sizes of `row` are sizes, and that it has a token for each patch.

    Raises:
        InputError: it contradicts itself.
    """
    sides = (row.size.height, row.size.width, row.grid.rows, row.grid.cols)
    if min(sides) < 1:
        raise _refusal(place, f"{shown(row.key)} has sides of {min(sides)}")
    wanted = (row.grid.rows * row.grid.cols, len(row.cls_token))
    if row.patch_tokens is not None and row.patch_tokens.shape != wanted:
        found = list(row.patch_tokens.shape)
        raise _refusal(place, f"{shown(row.key)} has patch tokens {found}, not {list(wanted)}")


def matrix(place: object, column: Any) -> NDArray[Any]:
    """A column of tokens, one or several for each image, as a matrix [N, F].

    Raises:
        InputError: the images have different numbers of values.
    """
    flat = column.flatten()
    while flat.type.num_fields:
        flat = flat.flatten()
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    width = len(values) // max(1, len(column))
    if not width or not _is_even(column):
        raise _refusal(place, "rows have different numbers of values")
    return values.reshape(len(column), width)


def _is_even(column: Any) -> bool:
    """Whether all lists in `column` have one length, and so on inside them."""
    compute = require("pyarrow.compute", extra="parquet", purpose="reading features")
    while column.type.num_fields:
        if len(np.unique(compute.list_value_length(column).to_numpy(zero_copy_only=False))) > 1:
            return False
        column = column.flatten()
    return True


def _refusal(place: object, reason: str) -> InputError:
    return InputError(f"{shown(place)} holds no features of dinov2rt ({reason}); leave it out")


def _kinds() -> dict[str, Any]:
    """Whether a type is what a column of features holds, by column."""
    types = require("pyarrow.types", extra="parquet", purpose="reading features")

    def is_list(kind: Any) -> bool:
        return any(
            holds(kind) for holds in (types.is_list, types.is_large_list, types.is_fixed_size_list)
        )

    def is_tokens(kind: Any) -> bool:
        return is_list(kind) and (
            types.is_floating(kind.value_type)
            or (is_list(kind.value_type) and types.is_floating(kind.value_type.value_type))
        )

    def is_token(kind: Any) -> bool:
        return is_list(kind) and types.is_floating(kind.value_type)

    single = dict.fromkeys(("cls_token", "patch_mean"), is_token)
    texts = {KEY: lambda kind: types.is_string(kind) or types.is_large_string(kind)}
    return {
        **texts,
        **dict.fromkeys(SIZE_COLUMNS, types.is_integer),
        **dict.fromkeys(TOKEN_COLUMNS, is_tokens),
        **single,
    }
