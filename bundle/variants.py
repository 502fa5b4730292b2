"""The eight DINOv2 backbones, in one table."""

from dataclasses import dataclass
from typing import Literal

from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted

PATCH_SIZE = 14
"""Side of a patch, in pixels; the same for every variant."""

NATIVE_GRID = 37
"""Side of the trained position table, in patches (518 pixels)."""

_MOST_COMPARED = 100


@dataclass(frozen=True, slots=True)
class Variant:
    """One backbone, as `dinov2/hub/backbones.py` and `vision_transformer.py` define it.

    `hidden_dim` is the width inside a block's MLP (for SwiGLU: of one half, after the gate).
    """

    name: str
    embed_dim: int
    depth: int
    num_heads: int
    ffn: Literal["mlp", "swiglu"]
    hidden_dim: int
    num_registers: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head: 64 in all eight."""
        return self.embed_dim // self.num_heads

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: CLS and the registers."""
        return 1 + self.num_registers


def _family(letter: str, **facts: int | str) -> tuple[Variant, Variant]:
    plain = Variant(name=f"dinov2_vit{letter}14", num_registers=0, **facts)  # type: ignore[arg-type]
    registers = Variant(name=f"dinov2_vit{letter}14_reg", num_registers=4, **facts)  # type: ignore[arg-type]
    return plain, registers


_TABLE = (
    *_family("s", embed_dim=384, depth=12, num_heads=6, ffn="mlp", hidden_dim=1536),
    *_family("b", embed_dim=768, depth=12, num_heads=12, ffn="mlp", hidden_dim=3072),
    *_family("l", embed_dim=1024, depth=24, num_heads=16, ffn="mlp", hidden_dim=4096),
    *_family("g", embed_dim=1536, depth=40, num_heads=24, ffn="swiglu", hidden_dim=4096),
)


def variants() -> tuple[Variant, ...]:
    """All eight variants, small to giant, plain before registers."""
    return _TABLE


def find_variant(name: str) -> Variant:
    """The variant called `name`.

    Raises:
        InputError: the name is unknown; the message gives the most similar one.
    """
    table = {variant.name: variant for variant in _TABLE}
    if name in table:
        return table[name]
    import difflib  # only for this message

    near = str(name)[:_MOST_COMPARED]
    close = difflib.get_close_matches(near, table, n=1, cutoff=0.0)
    raise InputError(
        f"unknown variant {quoted(name)}; nearest is {quoted(close[0])}, all are: "
        f"{', '.join(table)}"
    )
