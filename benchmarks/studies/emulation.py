"""Emulates half precision on a CPU: values stored in half, computed and accumulated in float32.

A typed graph is rewritten so that every operator computes in float32, and so that each value that
the typed graph stores in half is rounded to half and widened again. ONNX Runtime executes the
result with its float32 kernels. Apart from the order of summation, tensor cores compute the same.
Fused kernels may round less often, so the emulation is a conservative estimate.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from dinov2rt.bundle.signature import FloatArray
from dinov2rt.export.surgery import Writer, bypass

_HALF_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def emulated(typed: ir.Model) -> Callable[[FloatArray], dict[str, FloatArray]]:
    """An emulation of a typed graph as a function, from its input to its outputs by name.

    `typed` itself is not changed.
    """
    model = typed.clone()
    emulate(model)
    options = ort.SessionOptions()
    # ONNX Runtime's optimizer would remove pairs of casts, and with them the rounding.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "emulated.onnx"
        ir.save(model, file, external_data=f"{file.name}.data")
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (given,) = [value.name for value in session.get_inputs()]

    def run(images: FloatArray) -> dict[str, FloatArray]:
        return dict(zip(names, session.run(names, {given: images}), strict=True))

    return run


def emulate(model: ir.Model) -> None:
    """Rewrite `model`, a typed graph with float32 outputs, in place."""
    for node in list(model.graph):
        if node.op_type == "Attention":
            _decompose(model.graph, node)
    for node in list(model.graph):
        if node.op_type != "Cast":
            _compute_in_float(model.graph, node)


def _decompose(graph: ir.Graph, attention: ir.Node) -> None:
    """`softmax(s q kᵀ) v`: scores and softmax in float32, probabilities rounded to half.

    This is the arithmetic of fused kernels, whose scores stay in the accumulators.
    """
    query, key, value = attention.inputs
    insert = Writer(graph, attention)
    scale = attention.attributes["scale"].as_float()
    query, key = (insert("Cast", part) for part in (query, key))
    scores = insert("MatMul", query, insert("Transpose", key, perm=[0, 1, 3, 2]))
    weights = insert("Softmax", insert("Mul", scores, np.float32(scale)), axis=-1)
    half = attention.outputs[0].dtype or ir.DataType.FLOAT16
    stored = insert("Cast", weights, dtype=half)
    bypass(graph, attention, insert("MatMul", stored, value, dtype=half))


def _compute_in_float(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype in _HALF_TYPES:
            wide = _cast(value, ir.DataType.FLOAT, f"{node.name}/in{index}")
            graph.insert_before(node, wide)
            node.replace_input_with(index, wide.outputs[0])
    for index, value in enumerate(node.outputs):
        half = value.dtype
        if half in _HALF_TYPES:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            rounded = _cast(value, half, f"{node.name}/out{index}")
            ir.convenience.replace_all_uses_with(value, rounded.outputs[0])
            rounded.replace_input_with(0, value)
            graph.insert_after(node, rounded)


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": to}, name=name)
    cast.outputs[0].name, cast.outputs[0].type = name, ir.TensorType(to)
    return cast
