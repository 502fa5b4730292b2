"""Writes attention in the form that OpenVINO computes fastest: see docs/adr/0008."""

from typing import Any

import numpy as np

from dinov2rt.runtime.cpu import is_x86

_MASK = 3
"""The first input of the operator after queries, keys and values; the scale is the next one."""


def expand_attention(model: Any) -> None:
    """Replace the operator for attention by the products and the softmax that it stands for.

    OpenVINO takes the operator apart in the same way, and joins the parts into one kernel. But it
    first transposes the keys from [B, N, heads, width] to [B, heads, width, N] in one step, which
    takes several times as long as two steps. Here, the product transposes its second factor itself,
    so that this step is not needed. The values are the same, bit for bit.

    Only x86 was measured; elsewhere the operator stays. Attention with a mask, or with another
    scale than 1, stays as well: exported bundles have neither.
    """
    from openvino import opset1, opset8  # import_openvino was here before

    if not is_x86():
        return
    for node in [each for each in model.get_ordered_ops() if _is_plain_attention(each)]:
        queries, keys, values = node.input_values()[:_MASK]
        scores = opset1.matmul(queries, keys, transpose_a=False, transpose_b=True)
        shares = opset8.softmax(scores, axis=-1)
        mixed = opset1.matmul(shares, values, transpose_a=False, transpose_b=False)
        mixed.set_friendly_name(node.get_friendly_name())
        for reader in list(node.output(0).get_target_inputs()):
            reader.replace_source_output(mixed.output(0))


def _is_plain_attention(node: Any) -> bool:
    if node.get_type_name() != "ScaledDotProductAttention" or node.get_attributes()["causal"]:
        return False
    given = [_constant(value.get_node()) for value in node.input_values()[_MASK:]]
    return given == [0.0, 1.0]


def _constant(node: Any) -> float | None:
    """The single value of a constant, also behind a conversion of its type; None for others."""
    if node.get_type_name() == "ConvertLike":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or np.size(node.get_data()) != 1:
        return None
    return float(node.get_data().item())
