"""Reads and changes ONNX graphs in memory, one node or one initializer at a time."""

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
    """The array of the initializer `value`."""
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
    """Replace the array of the initializer `value`."""
    if value is None:
        raise ValueError("no value to set")
    value.const_value = ir.tensor(np.asarray(array, order="C"), name=value.name)


def bypass(graph: ir.Graph, node: ir.Node, replacement: ir.Value) -> None:
    """Remove `node`, and use `replacement` instead of its only output."""
    ir.convenience.replace_all_uses_with(node.outputs[0], replacement)
    graph.remove(node, safe=True)


def module_of(node: ir.Node) -> str:
    """The module that a node was traced from, e.g. `blocks.3.qkv`."""
    return (node.name or "").partition("/")[0]


def is_of_block(node: ir.Node) -> bool:
    """Whether a node was traced from a block of the backbone; heads use the same last names."""
    return module_of(node).startswith("blocks.")


Operand = ir.Value | np.ndarray | np.float32 | None


class Writer:
    """Inserts nodes before the node `before`, or at the end without one, in the order of the calls.

    Numbers and arrays among the operands become initializers that are named after the node. Other
    keyword arguments are the operator's attributes.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node | None = None) -> None:
        self.graph: ir.Graph = graph
        self._before, self._count = before, 0

    def __call__(
        self,
        op_type: str,
        *operands: Operand,
        name: str | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Insert a node with one output of type `dtype`; both are called `name`."""
        if op_type == "Cast":
            attributes["to"] = dtype
        self._count += 1
        if name is None:
            name = f"{self._before.name if self._before else ''}/{op_type}_{self._count}"
        (output,) = self._insert(op_type, operands, name, domain, 1, attributes)
        output.name, output.type = name, ir.TensorType(dtype)
        return output

    def several(
        self,
        op_type: str,
        *operands: Operand,
        name: str,
        used: tuple[bool, ...],
        domain: str = "",
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Insert a node with several float32 outputs; outputs that are not `used` are left out."""
        outputs = self._insert(op_type, operands, name, domain, len(used), attributes)
        for index, (output, is_used) in enumerate(zip(outputs, used, strict=True)):
            output.name = f"{name}_{index}" if is_used else ""
            output.type = ir.TensorType(ir.DataType.FLOAT)
        return outputs

    def initializer(self, name: str) -> ir.Value:
        """The initializer called `name`."""
        return self.graph.initializers[name]

    def array(self, name: str) -> np.ndarray:
        """The array of the initializer called `name`."""
        return array_of(self.initializer(name))

    def _insert(
        self,
        op_type: str,
        operands: tuple[Operand, ...],
        name: str,
        domain: str,
        num_outputs: int,
        attributes: dict[str, Any],
    ) -> tuple[ir.Value, ...]:
        inputs = [
            operand
            if operand is None or isinstance(operand, ir.Value)
            else add_initializer(self.graph, f"{name}_{index}", np.asarray(operand))
            for index, operand in enumerate(operands)
        ]
        node = ir.node(
            op_type, inputs, attributes, domain=domain, name=name, num_outputs=num_outputs
        )
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)
        return tuple(node.outputs)
