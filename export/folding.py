"""Exact algebraic steps that move factors of the graph into the weights.

Every step changes the given model in place, but not the function that it computes.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.export.surgery import (
    add_initializer,
    array_of,
    bypass,
    is_of_block,
    module_of,
    nodes_of,
    producer_of,
    set_array,
)


def fold_layer_scale(model: ir.Model) -> None:
    """Fold LayerScale into the projection before it: `γ · (x W + b)` is `x (W γ) + b γ`."""
    for scale in nodes_of(model, "Mul"):
        added = scale.inputs[0]
        gamma = scale.inputs[1]
        if gamma is None or gamma.name is None or not gamma.name.endswith(".gamma"):
            continue
        add = producer_of(added)
        product = producer_of(add.inputs[0])
        factor = array_of(gamma)
        for weight in (product.inputs[1], add.inputs[1]):
            set_array(weight, array_of(weight) * factor)
        bypass(model.graph, scale, add.outputs[0])
        del model.graph.initializers[gamma.name]


def fold_attention_scale(model: ir.Model, architecture: Architecture) -> None:
    """`softmax(s q kᵀ)`: the scale `s = head_dim^-0.5` goes into the query's weight and bias."""
    for index in range(architecture.depth):
        for kind in ("weight", "bias"):
            value = model.graph.initializers[f"blocks.{index}.qkv.{kind}"]
            scaled = array_of(value).copy()
            scaled[..., : architecture.embed_dim] *= np.float32(architecture.head_dim**-0.5)
            set_array(value, scaled)
    for attention in nodes_of(model, "Attention"):
        attention.attributes["scale"] = ir.AttrFloat32("scale", 1.0)


def fold_norms(model: ir.Model) -> None:
    """Fold a norm's scale and shift into the next products.

    `(n γ + β) W + b` is `n (γ W) + (β W + b)`. Norms with other uses, such as the final norm, are
    not changed, nor are norms of heads, whose product has its bias added later.
    """
    for norm in nodes_of(model, "LayerNormalization"):
        products = [use.node for use in norm.outputs[0].uses()]
        if any(product.op_type != "MatMul" or not is_of_block(product) for product in products):
            continue
        scale, shift = (array_of(value).astype(np.float64) for value in norm.inputs[1:])
        for product in products:
            weight = array_of(product.inputs[1]).astype(np.float64)
            bias = _bias_of(product)
            set_array(bias, (array_of(bias) + shift @ weight).astype(np.float32))
            set_array(product.inputs[1], (scale[:, None] * weight).astype(np.float32))
        set_array(norm.inputs[1], np.ones_like(scale, np.float32))
        norm.resize_inputs(2)


def split_qkv(model: ir.Model) -> None:
    """Replace a product and the Split after it by three products, which compute the same sums.

    The weights may be float32, or int8 behind a DequantizeLinear.
    """
    for split in nodes_of(model, "Split"):
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


def fold(model: ir.Model, architecture: Architecture) -> None:
    """Fold LayerScale and the attention scale."""
    fold_layer_scale(model)
    fold_attention_scale(model, architecture)


def _bias_of(product: ir.Node) -> ir.Value | None:
    (use,) = product.outputs[0].uses()
    return use.node.inputs[1]


def _parts(value: ir.Value | None, split: ir.Node) -> list[ir.Value]:
    """Split `value`, an initializer or a node of initializers, as `split` would.

    The parts are named after it: blocks.0.qkv.weight.0, blocks.0.qkv.weight.1 and so on.
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
