"""Exact algebra that moves factors out of the graph and into the weights, one named step each.

Every step changes the model that it is given and leaves its function as it was.
"""

import numpy as np
import onnx_ir as ir

from dinov2rt.runtime.variants import Variant


def fold_layer_scale(model: ir.Model) -> None:
    """`γ · (x W + b)` is `x (W γ) + b γ`: LayerScale goes into the projection before it."""
    for scale in _nodes(model, "Mul"):
        added = scale.inputs[0]
        gamma = scale.inputs[1]
        if gamma is None or gamma.name is None or not gamma.name.endswith(".gamma"):
            continue
        add = producer_of(added)
        product = producer_of(add.inputs[0])
        factor = array_of(gamma)
        for weight in (product.inputs[1], add.inputs[1]):
            _set(weight, array_of(weight) * factor)
        _remove(model, scale, add.outputs[0])
        del model.graph.initializers[gamma.name]


def fold_attention_scale(model: ir.Model, variant: Variant) -> None:
    """`softmax(s q kᵀ)`: the scale `s = head_dim^-0.5` goes into the query's weight and bias."""
    for index in range(variant.depth):
        for kind in ("weight", "bias"):
            value = model.graph.initializers[f"blocks.{index}.qkv.{kind}"]
            scaled = array_of(value).copy()
            scaled[..., : variant.embed_dim] *= np.float32(variant.head_dim**-0.5)
            _set(value, scaled)
    for attention in _nodes(model, "Attention"):
        attention.attributes["scale"] = ir.AttrFloat32("scale", 1.0)


def fold(model: ir.Model, variant: Variant) -> None:
    """All steps."""
    fold_layer_scale(model)
    fold_attention_scale(model, variant)


def _nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def producer_of(value: ir.Value | None) -> ir.Node:
    """The node whose output `value` is."""
    node = value.producer() if value is not None else None
    if node is None:
        raise ValueError(f"{value} is no node's output")
    return node


def array_of(value: ir.Value | None) -> np.ndarray:
    """What the initializer `value` holds."""
    if value is None or value.const_value is None:
        raise ValueError(f"{value} is no initializer")
    return value.const_value.numpy()


def _set(value: ir.Value | None, array: np.ndarray) -> None:
    if value is None:
        raise ValueError("no value to set")
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)


def _remove(model: ir.Model, node: ir.Node, replacement: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], replacement)
    model.graph.remove(node, safe=True)
