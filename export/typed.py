"""Strongly typed graphs: precision is written into the graph, as TensorRT 10 and later want it.

The regime is that of the official evaluation, fp16 autocast: matrix products and attention in half
precision; residual stream, LayerNorm, LayerScale and the position table in float32. LayerScale is
not folded here: γ of trained models is small enough to push weights into fp16's subnormal range.
"""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from dinov2rt.runtime.precision import Precision

_HALF = {
    Precision.FP16: (ir.DataType.FLOAT16, np.dtype(np.float16)),
    Precision.BF16: (ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}


def to_half(model: ir.Model, precision: Precision) -> None:
    """Type `model`, a float32 trace, for `precision` "fp16" or "bf16"; outputs stay float32."""
    Typing(model, precision).apply()


class Typing:
    """One pass over the nodes that keeps, for each value, its half-precision twin."""

    def __init__(self, model: ir.Model, precision: Precision) -> None:
        self.model, self.graph = model, model.graph
        self.data_type, self.numpy_type = _HALF[precision]
        self.half: set[int] = set()  # ids of values that are in half precision
        self.casts: dict[tuple[int, ir.DataType], ir.Value] = {}

    def apply(self) -> None:
        """Visit the nodes in order; each gets its inputs in the type that it computes in."""
        for node in list(self.graph):
            if _computes_in_half(node):
                self._retype(node)
            else:
                self._restore_float(node)

    def _retype(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == ir.DataType.FLOAT:
                node.replace_input_with(index, self._to_half(value, node))
        for output in node.outputs:
            self.half.add(id(output))
            output.dtype = self.data_type

    def _restore_float(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and id(value) in self.half and node.op_type != "Shape":
                node.replace_input_with(index, self._cast(value, ir.DataType.FLOAT, node))

    def _to_half(self, value: ir.Value, node: ir.Node) -> ir.Value:
        if id(value) in self.half:
            return value
        if value.const_value is not None:
            value.const_value = ir.tensor(
                value.const_value.numpy().astype(self.numpy_type), name=value.name
            )
            value.dtype = self.data_type
            self.half.add(id(value))
            return value
        return self._cast(value, self.data_type, node)

    def _cast(self, value: ir.Value, data_type: ir.DataType, before: ir.Node) -> ir.Value:
        key = (id(value), data_type)
        if key not in self.casts:
            module = (before.name or "").partition("/")[0]
            cast = ir.node(
                "Cast", [value], {"to": data_type}, name=f"{module}/Cast_{len(self.casts)}"
            )
            cast.outputs[0].name = f"{value.name}_{data_type.name.lower()}"
            self.graph.insert_before(before, cast)
            self.casts[key] = cast.outputs[0]
        return self.casts[key]


def _computes_in_half(node: ir.Node) -> bool:
    """Products, attention and the activation between them; a projection's bias is float32."""
    module = (node.name or "").partition("/")[0]
    if node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    if not module.startswith("blocks."):
        return node.op_type == "Conv"
    leaf = module.rpartition(".")[2]
    if leaf in ("qkv", "up"):
        return True
    if leaf in ("proj", "down"):
        return node.op_type == "MatMul"
    return node.op_type in _HALF_OPS and leaf not in ("norm1", "norm2", "ls1", "ls2")


_HALF_OPS = ("Split", "Reshape", "Transpose", "Attention", "Gelu", "Sigmoid", "Mul")
