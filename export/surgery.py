"""Reading and changing ONNX graphs in memory, one node or one initializer at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir


def nodes_of(model: ir.Model, op_type: str) -> list[ir.Node]:
    """All nodes of one operator, in the order of the graph."""
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
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.val(name, dtype=tensor.dtype, shape=array.shape, const_value=tensor)
    graph.initializers.add(value)
    return value


def set_array(value: ir.Value | None, array: np.ndarray) -> None:
    """Replace what the initializer `value` holds."""
    if value is None:
        raise ValueError("no value to set")
    value.const_value = ir.tensor(np.asarray(array, order="C"), name=value.name)


def bypass(graph: ir.Graph, node: ir.Node, replacement: ir.Value) -> None:
    """Remove `node`, whose only output `replacement` takes the place of."""
    ir.convenience.replace_all_uses_with(node.outputs[0], replacement)
    graph.remove(node, safe=True)


def module_of(node: ir.Node) -> str:
    """The module that a node was traced from, e.g. `blocks.3.qkv`."""
    return (node.name or "").partition("/")[0]


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
            given
            if given is None or isinstance(given, ir.Value)
            else add_initializer(graph, f"{name}_constant", np.asarray(given))
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
