"""Exact algebra that moves factors out of the graph and into the weights, one named step each.

Every step changes the model that it is given and leaves its function as it was.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dinov2rt.export.typed import module_of
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


def fold_norms(model: ir.Model) -> None:
    """`(n γ + β) W + b` is `n (γ W) + (β W + b)`: a norm's scale and shift go into what it feeds.

    Norms whose output is used otherwise, as the final one's, stay as they are.
    """
    for norm in _nodes(model, "LayerNormalization"):
        products = [use.node for use in norm.outputs[0].uses()]
        if any(product.op_type != "MatMul" for product in products):
            continue
        scale, shift = (array_of(value).astype(np.float64) for value in norm.inputs[1:])
        for product in products:
            weight = array_of(product.inputs[1]).astype(np.float64)
            bias = _bias_of(product)
            _set(bias, (array_of(bias) + shift @ weight).astype(np.float32))
            _set(product.inputs[1], (scale[:, None] * weight).astype(np.float32))
        _set(norm.inputs[1], np.ones_like(scale, np.float32))
        norm.resize_inputs(2)


def split_qkv(model: ir.Model) -> None:
    """One product of which a Split copies the parts becomes three, which compute the same sums.

    The weights may be float32, or int8 behind a DequantizeLinear.
    """
    for split in _nodes(model, "Split"):
        add = producer_of(split.inputs[0])
        product = producer_of(add.inputs[0])
        if not module_of(product).endswith(".qkv"):
            continue
        weights, biases = (_parts(value, split) for value in (product.inputs[1], add.inputs[1]))
        for index, part in enumerate(split.outputs):
            own_product = ir.node("MatMul", [product.inputs[0], weights[index]])
            own_add = ir.node("Add", [own_product.outputs[0], biases[index]])
            for node in (own_product, own_add):
                node.name = f"{module_of(product)}/{node.op_type}.{index}"
                node.outputs[0].name, node.outputs[0].type = node.name, part.type
                node.outputs[0].shape = part.shape
            model.graph.insert_before(split, [own_product, own_add])
            ir.convenience.replace_all_uses_with(part, own_add.outputs[0])
    RemoveUnusedNodesPass()(model)


def fold(model: ir.Model, variant: Variant) -> None:
    """LayerScale and the attention scale."""
    fold_layer_scale(model)
    fold_attention_scale(model, variant)


def _bias_of(product: ir.Node) -> ir.Value | None:
    (use,) = product.outputs[0].uses()
    return use.node.inputs[1]


def _parts(value: ir.Value | None, split: ir.Node) -> list[ir.Value]:
    """The values that `split` would make of `value`, an initializer or a node of initializers.

    They are called after it: blocks.0.qkv.weight becomes blocks.0.qkv.weight.0 and so on.
    """
    graph, count = split.graph, len(split.outputs)
    if value is None or graph is None:
        raise ValueError("no value to split")
    names = [f"{value.name}.{index}" for index in range(count)]
    node = value.producer()
    if node is None:
        arrays = np.split(array_of(value), count, axis=-1)
        return [add_initializer(graph, *pair) for pair in zip(names, arrays, strict=True)]
    parts, inputs_of_parts = [], zip(*(_parts(each, split) for each in node.inputs), strict=True)
    for name, inputs in zip(names, inputs_of_parts, strict=True):
        own = ir.node(node.op_type, inputs, node.attributes, name=name)
        own.outputs[0].name, own.outputs[0].type = name, value.type
        graph.insert_before(split, own)
        parts.append(own.outputs[0])
    return parts


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


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer of `graph`."""
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.val(name, dtype=tensor.dtype, shape=array.shape, const_value=tensor)
    graph.initializers.add(value)
    return value


def _set(value: ir.Value | None, array: np.ndarray) -> None:
    if value is None:
        raise ValueError("no value to set")
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)


def _remove(model: ir.Model, node: ir.Node, replacement: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], replacement)
    model.graph.remove(node, safe=True)
