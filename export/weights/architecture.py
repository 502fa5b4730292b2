"""The architecture of a state dict: of its tensors, of files beside them, of options."""

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.bundle.variants import name_of
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.state_dict import StateDict, first_few

_HEAD_DIM = 64
"""The width of a head in every model of the official recipe."""

_OFFSET = 0.1
_CONFIG = "config.json"
_NEEDED = (
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "blocks.0.norm1.weight",
    "norm.weight",
)
_BLOCK = re.compile(r"blocks\.(\d{1,4})\.")


@dataclass(frozen=True, slots=True)
class Stated:
    """Facts about an architecture that tensors do not tell; None where nobody states them.

    They come from the options of `export`, or from configuration files beside the weights.
    `image_size` is the size of the position table according to a configuration; the table may have
    been resampled since. With `follows_source`, the table is resampled as in the library that the
    weights come from.
    """

    num_heads: int | None = None
    native_grid: Grid | None = None
    image_size: ImageSize | None = None
    antialias: bool | None = None
    offset: float | None = None
    normalization: Normalization | None = None
    follows_source: bool | None = None

    @classmethod
    def of(cls, architecture: Architecture) -> "Stated":
        """The facts of `architecture`, as if they had been stated."""
        names = ("num_heads", "native_grid", "antialias", "offset", "normalization")
        return cls(**{name: getattr(architecture, name) for name in names})

    @property
    def num_patches(self) -> int | None:
        """The number of patches in the position table, if its grid is stated."""
        return None if self.native_grid is None else self.native_grid.num_patches

    def over(self, other: "Stated") -> "Stated":
        """Both together; this one takes precedence."""
        own = {name: getattr(self, name) for name in self.__slots__}
        return replace(other, **{name: value for name, value in own.items() if value is not None})


NOTHING_STATED = Stated()


def read_architecture(state: StateDict, source: str, stated: Stated) -> Architecture:
    """The architecture of `state`, which has the official names.

    Sizes come from its tensors. Where `stated` does not say otherwise, heads are 64 wide, the
    position table is square, and it is resampled as the official models are: antialiased with
    registers, at an offset of 0.1 without.

    Raises:
        WeightsError: it holds no such model, or does not tell all of it; the message begins with
            `source`.
    """
    missing = [name for name in _NEEDED if name not in state]
    if missing:
        raise WeightsError(
            f"{source} holds no DINOv2 backbone: there is no {first_few(missing)}; its tensors are "
            f"{first_few(state)}"
        )
    width = int(state["norm.weight"].shape[0])
    registers = _num_registers(state)
    try:
        return Architecture(
            embed_dim=width,
            depth=1 + max(int(match[1]) for name in state if (match := _BLOCK.match(name))),
            num_heads=_num_heads(width, stated.num_heads, source),
            patch_size=_patch_size(state, source),
            num_registers=registers,
            native_grid=_native_grid(state, stated, source),
            antialias=registers > 0 if stated.antialias is None else stated.antialias,
            offset=_offset(registers) if stated.offset is None else stated.offset,
            normalization=stated.normalization or IMAGENET,
            layer_scale="blocks.0.ls1.gamma" in state,
            qkv_bias="blocks.0.attn.qkv.bias" in state,
            **_feed_forward(state, source),
        )
    except ValueError as error:
        raise WeightsError(f"{source}: {error}; correct what was stated of it") from error


def as_of_library(architecture: Architecture, library: str | None) -> Architecture | None:
    """`architecture` with the position table resampled as transformers or timm does it.

    Both sample to a size, without the official offset. transformers antialiases with registers
    alone (`interpolate_pos_encoding` in `modeling_dinov2.py` and
    `modeling_dinov2_with_registers.py`), timm always (`resample_abs_pos_embed`).
    """
    if library is None:
        return None
    antialias = library == "timm" or architecture.num_registers > 0
    return replace(architecture, antialias=antialias, offset=0.0)


def following(stated: Stated, state: StateDict, library: str | None, source: str) -> Stated:
    """`stated`, with the interpolation of the `library` that the weights are from.

    Raises:
        WeightsError: nothing tells the library, or the interpolation is stated besides.
    """
    if library is None:
        raise WeightsError(
            f"{source} has official names and no {_CONFIG} of timm beside it: nothing tells "
            "whose interpolation to follow; state --antialias and --offset (timm: on, 0)"
        )
    if stated.antialias is not None or stated.offset is not None:
        raise WeightsError("--interpolation source states --antialias and --offset; leave them out")
    antialias = library == "timm" or _num_registers(state) > 0
    return replace(stated, antialias=antialias, offset=0.0)


def as_wanted(wanted: Architecture, stated: Stated, source: str) -> Architecture:
    """`wanted`, with what may be stated of weights that are of its sizes.

    Raises:
        WeightsError: `stated` contradicts it.
    """
    for name in ("num_heads", "native_grid"):
        value = getattr(stated, name)
        if value not in (None, getattr(wanted, name)):
            raise WeightsError(
                f"{source}: {name} {value} was stated, {name_of(wanted)} has "
                f"{getattr(wanted, name)}; ask for auto, which takes what is stated"
            )
    given: dict[str, Any] = {
        name: getattr(stated, name)
        for name in ("antialias", "offset", "normalization")
        if getattr(stated, name) is not None
    }
    plain = {f.name: getattr(wanted, f.name) for f in fields(Architecture)}
    try:
        return Architecture(**plain | given)
    except ValueError as error:
        raise WeightsError(f"{source}: {error}; correct what was stated of it") from error


def _num_registers(state: StateDict) -> int:
    return int(state["register_tokens"].shape[1]) if "register_tokens" in state else 0


def _offset(registers: int) -> float:
    return 0.0 if registers else _OFFSET


def _num_heads(width: int, stated: int | None, source: str) -> int:
    if stated is not None:
        return stated
    if width % _HEAD_DIM:
        raise WeightsError(
            f"{source}: width {width} is no multiple of {_HEAD_DIM}, the width of a head in "
            "official models; say how many heads there are with --num-heads N"
        )
    return width // _HEAD_DIM


def _patch_size(state: StateDict, source: str) -> int:
    shape = tuple(state["patch_embed.proj.weight"].shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise WeightsError(
            f"{source}: patch_embed.proj.weight is {shape}; allowed are square patches of 3 "
            "channels, (D, 3, P, P)"
        )
    return int(shape[2])


def _native_grid(state: StateDict, stated: Stated, source: str) -> Grid:
    """The grid of the position table behind its CLS row: as stated, else square."""
    count = int(state["pos_embed"].shape[1]) - 1
    side = math.isqrt(max(count, 0))
    grid = Grid(side, side) if stated.native_grid is None else stated.native_grid
    if stated.native_grid is None and stated.image_size is not None:
        configured = stated.image_size.grid(_patch_size(state, source))
        grid = configured if configured.num_patches == count else grid
    if grid.num_patches != count:
        raise WeightsError(
            f"{source}: the position table has {count} patches, which is not {grid}; "
            "say its grid with --grid ROWSxCOLUMNS"
        )
    return grid


def _feed_forward(state: StateDict, source: str) -> dict[str, Any]:
    for ffn, narrowing in (
        ("swiglu", "blocks.0.mlp.w3.weight"),
        ("mlp", "blocks.0.mlp.fc2.weight"),
    ):
        if narrowing in state:
            return {"ffn": ffn, "hidden_dim": int(state[narrowing].shape[-1])}
    raise WeightsError(
        f"{source}: block 0 has neither an MLP (mlp.fc1, mlp.fc2) nor SwiGLU (mlp.w12, mlp.w3); "
        "give a checkpoint of a DINOv2 backbone"
    )
