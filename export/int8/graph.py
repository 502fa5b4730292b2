"""Int8 graphs, for OpenVINO on the CPU: int8 weights, in the operators of the standard.

Weights are rounded as `gptq.py` says, with a scale for each output channel. `DequantizeLinear`
gives the product float32 ones, but OpenVINO leaves that out: it rounds activations at every call,
multiplies bytes, and scales the sums. What was tried besides is in docs/adr/0009.
"""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dinov2rt.export.int8.gptq import Int8Weight
from dinov2rt.export.int8.products import LEAVES
from dinov2rt.export.surgery import add_initializer, array_of, module_of

_OUTPUT_CHANNELS = 1
"""Axis of a weight [in, out]."""


def product_weights(model: ir.Model) -> dict[str, NDArray[np.float32]]:
    """The weights [in, out] of all products that can be int8, by name."""
    return {module_of(product): array_of(product.inputs[1]) for product in _products(model)}


def to_int8(
    model: ir.Model, weights: Mapping[str, Int8Weight], float32: Collection[str] = ()
) -> None:
    """Give the products of `model`, a folded float32 graph, int8 `weights`.

    Those named in `float32` stay as they are.
    """
    for product in list(_products(model)):
        if module_of(product) not in float32:
            _quantize(model.graph, product, weights[module_of(product)])


def _products(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph:
        if node.op_type == "MatMul" and module_of(node).rpartition(".")[2] in LEAVES:
            yield node


def _quantize(graph: ir.Graph, product: ir.Node, weight: Int8Weight) -> None:
    name = module_of(product)
    float32 = graph.initializers.pop(f"{name}.weight")
    node = ir.node(
        "DequantizeLinear",
        [
            add_initializer(graph, f"{name}.weight_int8", weight.integers),
            add_initializer(graph, f"{name}.weight_scale", weight.scale),
        ],
        {"axis": _OUTPUT_CHANNELS},
        name=f"{name}/DequantizeLinear",
    )
    output = node.outputs[0]
    output.name, output.type, output.shape = float32.name, float32.type, float32.shape
    graph.insert_before(product, node)
    product.replace_input_with(1, output)
