"""Writing further nodes into a graph, one operator a call."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

Insert = Callable[..., ir.Value]
"""`insert("MatMul", a, b)`: the output of a new node; keywords are attributes."""


def inserter(graph: ir.Graph, before: ir.Node) -> Insert:
    """Inserts nodes before `before`, with names that begin with its own.

    Each computes in float32, unless it is a Cast or is given another `dtype`. Numbers and arrays
    among the inputs become initializers.
    """
    count = 0

    def insert(
        op_type: str,
        *inputs: ir.Value | np.ndarray | np.float32 | None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: Any,
    ) -> ir.Value:
        nonlocal count
        count += 1
        name = f"{before.name}/{op_type}_{count}"
        values = [
            given if given is None or isinstance(given, ir.Value) else _constant(graph, name, given)
            for given in inputs
        ]
        if op_type == "Cast":
            attributes["to"] = dtype
        node = ir.node(op_type, values, attributes, name=name)
        (output,) = node.outputs
        output.name, output.type = f"{name}_out", ir.TensorType(dtype)
        graph.insert_before(before, node)
        return output

    return insert


def replace(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    """Take out `node`, whose only output `output` takes the place of."""
    ir.convenience.replace_all_uses_with(node.outputs[0], output)
    graph.remove(node, safe=True)


def _constant(graph: ir.Graph, user: str, array: np.ndarray | np.float32) -> ir.Value:
    name = f"{user}_constant"
    tensor = ir.tensor(array, name=name)
    value = ir.val(name, dtype=tensor.dtype, shape=array.shape, const_value=tensor)
    graph.initializers.add(value)
    return value
