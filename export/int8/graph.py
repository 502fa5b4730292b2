"""Int8 graphs, for OpenVINO on the CPU: int8 weights, in the operators of the standard.

Weights are rounded as `gptq.py` says, with a scale for each output channel. `DequantizeLinear`
gives the product float32 ones, but OpenVINO leaves that out: it rounds activations, multiplies
bytes, and scales the sums. It rounds dynamic activations by itself; static ones are rounded by
`QuantizeLinear` in the graph. What was tried besides is in docs/adr/0009.
"""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dinov2rt.export.int8.activations import Steps
from dinov2rt.export.int8.gptq import Int8Product, Int8Weight
from dinov2rt.export.int8.products import LEAVES
from dinov2rt.export.surgery import (
    Writer,
    add_initializer,
    array_of,
    is_of_block,
    module_of,
    set_array,
)

_OUTPUT_CHANNELS = 1
"""Axis of a weight [in, out]."""
_INPUT_CHANNELS = 2
"""Axis of activations [B, N, in]."""


def product_weights(model: ir.Model) -> dict[str, NDArray[np.float32]]:
    """The weights [in, out] of all products that can be int8, by name of the product."""
    return {module_of(product): array_of(product.inputs[1]) for product in _products(model)}


def to_int8(
    model: ir.Model, rounded: Mapping[str, Int8Product], float32: Collection[str] = ()
) -> None:
    """Replace the products of `model`, a folded float32 graph, by the int8 products in `rounded`.

    Products named in `float32` stay as they are.
    """
    for product in list(_products(model)):
        if module_of(product) not in float32:
            own = rounded[module_of(product)]
            _quantize_weight(model.graph, product, own.weight)
            if own.steps is not None:
                _quantize_activations(model.graph, product, own.steps, own.weight)


def _products(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph:
        leaf = module_of(node).rpartition(".")[2]
        if node.op_type == "MatMul" and is_of_block(node) and leaf in LEAVES:
            yield node


def _quantize_weight(graph: ir.Graph, product: ir.Node, weight: Int8Weight) -> None:
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


def _quantize_activations(
    graph: ir.Graph, product: ir.Node, steps: Steps, weight: Int8Weight
) -> None:
    """Round the input of `product`, in units of its steps.

    The scales `s` of the steps are in the int8 weights: `x W` is about `u (s W)`, where `u` are the
    bytes `round(x / s)`. With zero points `z` the bytes are unsigned, and what `z` adds is taken
    out of the bias: `u (s W) + (b - z s W)`.
    """
    scale, zero_point = _folded(graph, product, steps)
    name, write = module_of(product), Writer(graph, product)
    rounded = write(
        "QuantizeLinear", product.inputs[0], scale, zero_point, name=f"{name}/QuantizeLinear",
        dtype=ir.DataType.from_numpy(zero_point.dtype), axis=_INPUT_CHANNELS,
    )  # fmt: skip
    in_steps = write("DequantizeLinear", rounded, np.float32(1), name=f"{name}/in_steps")
    product.replace_input_with(0, in_steps)
    if steps.zero_point is not None:
        ((add, _),) = product.outputs[0].uses()
        shift = steps.zero_point @ weight.integers.astype(np.float64) * weight.scale
        set_array(add.inputs[1], (array_of(add.inputs[1]) - shift).astype(np.float32))


def _folded(
    graph: ir.Graph, product: ir.Node, steps: Steps
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Let the nodes before `product` give units of `steps`; what is left to do of them.

    OpenVINO 2026.4.1 rounds channels with scales of their own rightly behind GELU alone: behind a
    norm it computes something else, and elsewhere it refuses them. So a norm's scale and shift take
    them over, or the product whose values are averaged or multiplied.
    """
    one, given = np.array(1, np.float32), product.inputs[0]
    source = given.producer() if given else None
    if steps.zero_point is None:
        _scale_values(graph, product, steps.scale)
        return one, np.array(0, np.int8)
    if source is None or source.op_type != "LayerNormalization":
        return steps.scale, steps.zero_point
    factor, shift = (array_of(value).astype(np.float64) for value in source.inputs[1:])
    set_array(source.inputs[1], (factor / steps.scale).astype(np.float32))
    set_array(source.inputs[2], (shift / steps.scale + steps.zero_point).astype(np.float32))
    return one, np.array(0, np.uint8)


def _scale_values(graph: ir.Graph, product: ir.Node, scale: NDArray[np.float32]) -> None:
    """Divide the last columns of the product before `product` by `scale` [in].

    See `scaled_by_product`.
    """
    block, _, leaf = module_of(product).rpartition(".")
    source = f"{block}.{'qkv' if leaf == 'proj' else 'up'}"
    is_int8 = f"{source}.weight_scale" in graph.initializers
    for name in (f"{source}.{'weight_scale' if is_int8 else 'weight'}", f"{source}.bias"):
        value = graph.initializers[name]
        scaled = array_of(value).copy()
        scaled[..., -len(scale) :] /= scale
        set_array(value, scaled)
