"""Half precision on a CPU: stored in the half format, computed and accumulated in float32.

A typed graph is rewritten so that every operator computes in float32 and each value that the typed
graph keeps in half precision is rounded to it and widened again. ONNX Runtime executes the result
with its float32 kernels. That is what tensor cores do, but for the order of summation; fused
kernels may leave out a rounding, so the emulation is the worse case of the two.
"""

import onnx_ir as ir

_HALF_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def emulate(model: ir.Model) -> None:
    """Rewrite `model`, a typed graph, in place."""
    for node in list(model.graph):
        if node.op_type == "Attention":
            _decompose(model.graph, node)
    for node in list(model.graph):
        if node.op_type != "Cast":
            _compute_in_float(model.graph, node)


def _decompose(graph: ir.Graph, attention: ir.Node) -> None:
    """`softmax(s q kᵀ) v`: scores and softmax in float32, probabilities stored as q, k and v are.

    That is the arithmetic of fused kernels: scores stay in the accumulators.
    """
    query, key, value = attention.inputs
    assert query is not None
    assert key is not None
    half = query.dtype
    assert half is not None
    prefix = attention.name
    scale = attention.attributes["scale"].as_float() if "scale" in attention.attributes else 0.125
    factor = ir.val(f"{prefix}_scale", const_value=ir.tensor(scale, dtype=ir.DataType.FLOAT))
    graph.initializers.add(factor)
    steps = [ir.node("Cast", [part], {"to": ir.DataType.FLOAT}) for part in (query, key)]
    steps.append(ir.node("Transpose", steps[1].outputs, {"perm": [0, 1, 3, 2]}))
    steps.append(ir.node("MatMul", [steps[0].outputs[0], steps[2].outputs[0]]))
    steps.append(ir.node("Mul", [steps[3].outputs[0], factor]))
    steps.append(ir.node("Softmax", steps[4].outputs, {"axis": -1}))
    steps.append(ir.node("Cast", steps[5].outputs, {"to": half}))
    steps.append(ir.node("MatMul", [steps[6].outputs[0], value]))
    for index, step in enumerate(steps):
        step.name = step.outputs[0].name = f"{prefix}/{index}"
        step.outputs[0].type = ir.TensorType(half if index > 5 else ir.DataType.FLOAT)
    graph.insert_before(attention, steps)
    ir.convenience.replace_all_uses_with(attention.outputs[0], steps[-1].outputs[0])
    graph.remove(attention, safe=True)


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
