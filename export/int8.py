"""Int8 graphs, for OpenVINO on the CPU: int8 weights, in the operators of the standard.

Weights have a scale for each output channel. `DequantizeLinear` gives the product float32 ones, but
OpenVINO leaves that out: it rounds activations at every call, multiplies bytes, and scales the
sums. What was tried besides is in docs/adr/0009.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from dinov2rt.export.folding import array_of
from dinov2rt.export.typed import module_of
from dinov2rt.runtime.variants import Variant

PRODUCTS = ("qkv", "proj", "up", "down")
_LARGEST = 127
_OUTPUT_CHANNELS = 1
"""Axis of a weight [in, out]."""


def product_names(variant: Variant) -> tuple[str, ...]:
    """All products that can be int8, e.g. `blocks.3.down`, in the order of the graph."""
    return tuple(f"blocks.{index}.{leaf}" for index in range(variant.depth) for leaf in PRODUCTS)


def to_int8(model: ir.Model, float32: Collection[str] = ()) -> None:
    """Quantise the products of `model`, a folded float32 graph, except those named in `float32`."""
    for node in list(model.graph):
        module = module_of(node)
        if (
            node.op_type == "MatMul"
            and module.rpartition(".")[2] in PRODUCTS
            and module not in float32
        ):
            _quantize(model.graph, node)


def quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`weight` [in, out] as int8, and the float32 scale [out] by which it has to be multiplied."""
    peaks = np.abs(weight).max(axis=0)
    scale = np.where(peaks > 0, peaks / np.float32(_LARGEST), np.float32(1))
    return np.rint(weight / scale).astype(np.int8), scale


def _quantize(graph: ir.Graph, product: ir.Node) -> None:
    name = module_of(product)
    weight = graph.initializers.pop(f"{name}.weight")
    integers, scale = quantized(array_of(weight))
    node = ir.node(
        "DequantizeLinear",
        [
            _constant(graph, f"{name}.weight_int8", integers),
            _constant(graph, f"{name}.weight_scale", scale),
        ],
        {"axis": _OUTPUT_CHANNELS},
        name=f"{name}/DequantizeLinear",
    )
    output = node.outputs[0]
    output.name, output.type, output.shape = weight.name, weight.type, weight.shape
    graph.insert_before(product, node)
    product.replace_input_with(1, output)


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.val(name, dtype=tensor.dtype, shape=array.shape, const_value=tensor)
    graph.initializers.add(value)
    return value
