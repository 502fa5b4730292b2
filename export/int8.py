"""Int8 graphs for ONNX Runtime's CPU provider: products of int8 weights and uint8 activations.

Weights have a scale for each output channel; activations get scale and zero point anew at every
call, from the range of the whole tensor. Both come from ONNX Runtime's own operators, as does
attention: its `MultiHeadAttention` works in tiles, where `Attention` holds all scores at once.
What was tried besides is in docs/adr/0009.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from dinov2rt.export.folding import array_of, producer_of
from dinov2rt.export.typed import module_of
from dinov2rt.runtime.variants import Variant

DOMAIN = "com.microsoft"
_LARGEST = 127
PRODUCTS = ("qkv", "proj", "up", "down")


def product_names(variant: Variant) -> tuple[str, ...]:
    """All products that can be int8, e.g. `blocks.3.down`, in the order of the graph."""
    return tuple(f"blocks.{index}.{leaf}" for index in range(variant.depth) for leaf in PRODUCTS)


def to_int8(model: ir.Model, variant: Variant, float32: Collection[str] = ()) -> None:
    """Quantise the products of `model`, a folded float32 graph, except those named in `float32`."""
    model.graph.opset_imports[DOMAIN] = 1
    for attention in _nodes(model.graph, "Attention"):
        _attend_in_tiles(model.graph, attention, variant)
    for product in _nodes(model.graph, "MatMul"):
        module = module_of(product)
        if module.rpartition(".")[2] in PRODUCTS and module not in float32:
            _quantize(model.graph, product)


def quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`weight` [in, out] as int8, and the float32 scale [out] by which it has to be multiplied."""
    peaks = np.abs(weight).max(axis=0)
    scale = np.where(peaks > 0, peaks / np.float32(_LARGEST), np.float32(1))
    return np.rint(weight / scale).astype(np.int8), scale


def _quantize(graph: ir.Graph, product: ir.Node) -> None:
    """`x @ W + b`, two nodes, becomes one. The tensors of `product` are shared: they stay."""
    (add,) = product.outputs[0].consumers()
    activations, weight, bias = product.inputs[0], product.inputs[1], add.inputs[1]
    integers, scale = quantized(array_of(weight))
    name = module_of(product)
    node = ir.node(
        "DynamicQuantizeMatMul",
        [
            activations,
            _constant(graph, f"{name}.weight_int8", integers),
            _constant(graph, f"{name}.weight_scale", scale),
            None,  # no zero point: symmetric
            bias,
        ],
        domain=DOMAIN,
        name=f"{name}/DynamicQuantizeMatMul",
    )
    _replace(graph, node, (product, add))
    del graph.initializers[f"{name}.weight"]


def _attend_in_tiles(graph: ir.Graph, attention: ir.Node, variant: Variant) -> None:
    """Put `MultiHeadAttention` on [B, N, D] in place of `Attention` and its (un)packing."""
    transposes = [producer_of(value) for value in attention.inputs[:3]]
    reshapes = [producer_of(transpose.inputs[0]) for transpose in transposes]
    (back,) = attention.outputs[0].consumers()
    (flat,) = back.outputs[0].consumers()
    node = ir.node(
        "MultiHeadAttention",
        [reshape.inputs[0] for reshape in reshapes],
        {"num_heads": variant.num_heads, "scale": attention.attributes["scale"].as_float()},
        domain=DOMAIN,
        name=f"{module_of(attention)}/MultiHeadAttention",
    )
    _replace(graph, node, (*reshapes, *transposes, attention, back, flat))


def _replace(graph: ir.Graph, node: ir.Node, old: tuple[ir.Node, ...]) -> None:
    """Put `node` where `old` stood, whose last one's output it computes."""
    last, output = old[-1].outputs[0], node.outputs[0]
    output.name, output.type = last.name, last.type
    graph.insert_after(old[-1], node)
    ir.convenience.replace_all_uses_with(last, output)
    for each in reversed(old):
        graph.remove(each, safe=True)


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.val(name, dtype=tensor.dtype, shape=array.shape, const_value=tensor)
    graph.initializers.add(value)
    return value


def _nodes(graph: ir.Graph, op_type: str) -> list[ir.Node]:
    return [node for node in graph if node.op_type == op_type]
