"""The matrix products that can be int8: the four of each block that have weights."""

from torch import nn

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.export.model import Dinov2

LEAVES = ("qkv", "proj", "up", "down")
"""The products of a block, in the order in which they are computed."""


def product_names(architecture: Architecture) -> tuple[str, ...]:
    """The names of all products, e.g. `blocks.3.down`, in the order of the graph."""
    return tuple(f"blocks.{index}.{leaf}" for index in range(architecture.depth) for leaf in LEAVES)


def scaled_by_product(architecture: Architecture) -> dict[str, str]:
    """Products whose activations are proportional to the result of another product of the block.

    Attention averages the values, which are the last columns of `qkv`. SwiGLU multiplies by the
    last columns of `up`.
    """
    swiglu = {"down": "up"} if architecture.ffn == "swiglu" else {}
    return {"proj": "qkv", **swiglu}


def products(model: Dinov2) -> dict[str, nn.Linear]:
    """The layers of the eager model that compute the products, by name."""
    linears = [part for part in model.blocks.modules() if isinstance(part, nn.Linear)]
    return dict(zip(product_names(model.architecture), linears, strict=True))
