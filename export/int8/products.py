"""Which products can be int8: the four of each block that have weights."""

from torch import nn

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.export.model import Dinov2

LEAVES = ("qkv", "proj", "up", "down")
"""Of a block, in the order in which they are computed."""


def product_names(architecture: Architecture) -> tuple[str, ...]:
    """All of them, e.g. `blocks.3.down`, in the order of the graph."""
    return tuple(f"blocks.{index}.{leaf}" for index in range(architecture.depth) for leaf in LEAVES)


def scaled_by_product(architecture: Architecture) -> dict[str, str]:
    """Leaves whose activations are in proportion to what another product of the block gives.

    Attention averages values, which are the last columns of `qkv`; SwiGLU multiplies by the last
    columns of `up`.
    """
    swiglu = {"down": "up"} if architecture.ffn == "swiglu" else {}
    return {"proj": "qkv", **swiglu}


def products(model: Dinov2) -> dict[str, nn.Linear]:
    """The layers of the eager model that compute them, by name."""
    linears = [part for part in model.blocks.modules() if isinstance(part, nn.Linear)]
    return dict(zip(product_names(model.architecture), linears, strict=True))
