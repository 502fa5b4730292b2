"""Tokens and attention taken out of the backbone's graph as they are there."""

import numpy as np
import onnx_ir as ir

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.signature import ATTENTION
from dinov2rt.export.surgery import Writer, nodes_of

_END = np.array([np.iinfo(np.int64).max])


def split_tokens(
    write: Writer, tokens: ir.Value, first_patch: int, name: str
) -> tuple[ir.Value, ir.Value]:
    """Tokens [B, N, D] to the CLS token [B, D] and the patch tokens [B, h·w, D]."""
    cls_token = write("Gather", tokens, np.array(0), name=f"{name}/cls", axis=1)
    patches = _from(write, tokens, first_patch, axis=1, name=f"{name}/patches")
    return cls_token, patches


def attach_attention(model: ir.Model, architecture: Architecture) -> None:
    """Return the CLS token's attention to each patch in the last block: [B, heads, h·w] float32.

    It is computed beside the fused attention, from the same queries and keys, for one query. The
    scale is the one that the operator still has: its own, or 1 once it is folded into the weights.
    """
    *_, attention = nodes_of(model, "Attention")
    query, key = attention.inputs[:2]  # [B, heads, N, head_dim] each
    write = Writer(model.graph)
    place = f"{ATTENTION}_map"
    first = write(
        "Slice", query, np.array([0]), np.array([1]), np.array([2]), name=f"{place}/query",
        dtype=_type_of(query),
    )  # fmt: skip
    keys = write("Transpose", key, name=f"{place}/keys", perm=[0, 1, 3, 2], dtype=_type_of(key))
    scores = write("MatMul", first, keys, name=f"{place}/product")
    scale = attention.attributes.get("scale")
    factor = architecture.head_dim**-0.5 if scale is None else scale.as_float()
    if factor != 1:
        scores = write("Mul", scores, np.float32(factor), name=f"{place}/scaled")
    weights = write("Softmax", scores, name=f"{place}/weights", axis=-1)
    patches = _from(write, weights, architecture.num_prefix_tokens, axis=3, name=f"{place}/patches")
    output = write("Squeeze", patches, np.array([2]), name=f"{place}/row")
    output.name = ATTENTION
    output.shape = ir.Shape(["batch", architecture.num_heads, "num_patches"])
    model.graph.outputs.append(output)


def _from(write: Writer, values: ir.Value, start: int, axis: int, name: str) -> ir.Value:
    return write("Slice", values, np.array([start]), _END, np.array([axis]), name=name)


def _type_of(value: ir.Value | None) -> ir.DataType:
    return ir.DataType.FLOAT if value is None or value.dtype is None else value.dtype
