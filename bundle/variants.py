"""The eight DINOv2 backbones, in one table: names for eight architectures."""

from dataclasses import dataclass, fields, replace
from typing import Any

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.normalization import IMAGENET
from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted

_ALL: dict[str, Any] = {
    "patch_size": 14,
    "native_grid": Grid(37, 37),  # 518 pixels a side
    "normalization": IMAGENET,
    "layer_scale": True,
    "qkv_bias": True,
}

_MOST_COMPARED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant(Architecture):
    """One of the eight backbones, as `dinov2/hub/backbones.py` defines it."""

    name: str

    @property
    def architecture(self) -> Architecture:
        """The architecture without its name."""
        return Architecture(**{f.name: getattr(self, f.name) for f in fields(Architecture)})


def _family(letter: str, **facts: Any) -> tuple[Variant, Variant]:
    name = f"dinov2_vit{letter}14"
    plain = Variant(name=name, num_registers=0, antialias=False, offset=0.1, **_ALL, **facts)
    registers = replace(plain, name=f"{name}_reg", num_registers=4, antialias=True, offset=0.0)
    return plain, registers


_TABLE = (
    *_family("s", embed_dim=384, depth=12, num_heads=6, ffn="mlp", hidden_dim=1536),
    *_family("b", embed_dim=768, depth=12, num_heads=12, ffn="mlp", hidden_dim=3072),
    *_family("l", embed_dim=1024, depth=24, num_heads=16, ffn="mlp", hidden_dim=4096),
    *_family("g", embed_dim=1536, depth=40, num_heads=24, ffn="swiglu", hidden_dim=4096),
)


def variants() -> tuple[Variant, ...]:
    """All eight variants, small to giant, plain before registers.

    Example:
        >>> [variant.name for variant in variants()][:2]
        ['dinov2_vits14', 'dinov2_vits14_reg']
    """
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


def variant_of(architecture: Architecture) -> Variant | None:
    """The variant that `architecture` is, whatever its mean and standard deviation; or None."""
    facts = replace(architecture, normalization=IMAGENET)
    return next((v for v in _TABLE if _facts(v) == _facts(facts)), None)


def name_of(architecture: Architecture) -> str:
    """The name of the variant that `architecture` is, or a label of its sizes."""
    variant = architecture if isinstance(architecture, Variant) else variant_of(architecture)
    return variant.name if variant else architecture.label


def _facts(architecture: Architecture) -> tuple[Any, ...]:
    return tuple(getattr(architecture, f.name) for f in fields(Architecture))
