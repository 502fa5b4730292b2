"""Writes nodes into an ONNX graph, one operator a call."""

from typing import Any

import numpy as np
import onnx_ir as ir

Operand = ir.Value | np.ndarray | None


class Writer:
    """Inserts nodes before the node `before`, in the order of the calls.

    Arrays among the operands become initializers, called after the node.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph, self._before = graph, before

    def __call__(
        self,
        op_type: str,
        *operands: Operand,
        name: str,
        dtype: ir.DataType = ir.DataType.FLOAT,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """A node of one output, of type `dtype`, and called `name` as the node is."""
        if op_type == "Cast":
            attributes["to"] = dtype
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
        """A node of several float32 outputs; those that are not `used` are left out of the graph."""
        outputs = self._insert(op_type, operands, name, domain, len(used), attributes)
        for index, (output, is_used) in enumerate(zip(outputs, used, strict=True)):
            output.name = f"{name}_{index}" if is_used else ""
            output.type = ir.TensorType(ir.DataType.FLOAT)
        return outputs

    def initializer(self, name: str) -> ir.Value:
        """The initializer called `name`."""
        return self.graph.initializers[name]

    def array(self, name: str) -> np.ndarray:
        """What the initializer called `name` holds."""
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
            self._constant(f"{name}_{index}", operand)
            if isinstance(operand, np.ndarray)
            else operand
            for index, operand in enumerate(operands)
        ]
        node = ir.node(
            op_type, inputs, attributes, domain=domain, name=name, num_outputs=num_outputs
        )
        self.graph.insert_before(self._before, node)
        return tuple(node.outputs)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        value = ir.val(name, dtype=tensor.dtype, shape=array.shape, const_value=tensor)
        self.graph.initializers.add(value)
        return value


def array_of(value: ir.Value) -> np.ndarray:
    """What the initializer `value` holds."""
    if value.const_value is None:
        raise ValueError(f"{value} is no initializer")
    return value.const_value.numpy()
