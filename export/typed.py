"""Makes strongly typed graphs, which state their precisions, as TensorRT 10 and later require.

The precisions are the same as in autocast, which the official evaluation uses: matrix products and
attention in half precision; residual stream, LayerNorm, LayerScale and position table in float32.
docs/adr/0005 has measurements for each of these choices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import ExportError
from dinov2rt.export.surgery import array_of, module_of

Policy = Callable[[ir.Node], bool]
"""Whether a node, which computes in float32 in the trace, shall compute in half precision."""

FLOAT16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class _Format:
    """A half format: the largest value, and the largest relative error of rounding to it."""

    data_type: ir.DataType
    numpy_type: np.dtype[Any]
    largest: float
    roundoff: float


_FORMATS = {
    Precision.FP16: _Format(ir.DataType.FLOAT16, np.dtype(np.float16), FLOAT16_MAX, 2**-11),
    Precision.BF16: _Format(
        ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16), (2 - 2**-7) * 2.0**127, 2**-8
    ),
}
WAY_OUT = 'leave "fp16" out of the precisions; "bf16" and "fp32" hold it'

_MOVES = ("Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Transpose")
"""Operators that only move data, and therefore keep the type of their input."""


def autocast(node: ir.Node) -> bool:
    """The official regime, except that the bias of a residual branch is added in float32.

    Of heads, DPT's decoder alone is in half precision: the others cost next to nothing, and lose
    digits there; see docs/adr/0015.
    """
    leaf, kind = module_of(node).rpartition(".")[2], node.op_type
    if module_of(node).startswith("heads."):
        return ".decoder" in module_of(node)
    if kind in ("Attention", "Conv", "Gelu", "Sigmoid"):
        return True
    if kind == "MatMul":
        return leaf in ("qkv", "proj", "up", "down")
    return (kind == "Add" and leaf in ("qkv", "up")) or (kind == "Mul" and leaf.isdigit())


def to_half(model: ir.Model, precision: Precision, policy: Policy = autocast) -> None:
    """Type `model`, a float32 trace, for "fp16" or "bf16". Its outputs stay float32.

    LayerScale must not be folded: γ of trained models is so small that weights would become
    subnormal in float16.

    Raises:
        ExportError: a weight does not fit the format.
    """
    _Typing(model.graph, precision, policy).apply()


def half_outputs(model: ir.Model, precision: Precision) -> None:
    """Cast the outputs to half precision, under the same names."""
    data_type = _FORMATS[precision].data_type
    graph = model.graph
    for index, output in enumerate(graph.outputs):
        name, output.name = output.name, f"{output.name}_float"
        cast = ir.node("Cast", [output], {"to": data_type}, name=f"{name}/Cast")
        (half,) = cast.outputs
        half.name, half.shape = name, output.shape
        half.type = ir.TensorType(data_type)
        graph.append(cast)
        graph.outputs[index] = half


class _Typing:
    """One pass over the nodes, in order, that inserts a cast wherever types differ."""

    def __init__(self, graph: ir.Graph, precision: Precision, policy: Policy) -> None:
        self.graph, self.policy = graph, policy
        self.format = _FORMATS[precision]
        self.data_type = self.format.data_type
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def apply(self) -> None:
        """Convert the inputs of each node to the type that it computes in."""
        for node in list(self.graph):
            if node.op_type in ("Shape", "Cast"):
                continue
            if self._is_half(node):
                self._feed(node, ir.DataType.FLOAT, self.data_type)
                for output in node.outputs:
                    output.type = ir.TensorType(self.data_type)  # clones share the object
            else:
                self._feed(node, self.data_type, ir.DataType.FLOAT)

    def _is_half(self, node: ir.Node) -> bool:
        if node.outputs[0].dtype != ir.DataType.FLOAT:
            return False  # arithmetic on shapes
        first = node.inputs[0]
        if node.op_type in _MOVES and len(node.inputs) > 0:
            return first is not None and first.dtype == self.data_type
        return self.policy(node)

    def _feed(self, node: ir.Node, unwanted: ir.DataType, wanted: ir.DataType) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == unwanted:
                node.replace_input_with(index, self._as(value, wanted, node))

    def _as(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        if value.const_value is not None and len(value.uses()) == 1:
            self._round(value)
            return value
        key = (value, wanted)
        if key not in self.casts:
            suffix = wanted.name.lower()
            name = f"{module_of(before)}/Cast_{value.name}_{suffix}"
            cast = ir.node("Cast", [value], {"to": wanted}, name=name)
            cast.outputs[0].name = f"{value.name}_{suffix}"
            cast.outputs[0].type = ir.TensorType(wanted)
            self.graph.insert_before(before, cast)
            self.casts[key] = cast.outputs[0]
        return self.casts[key]

    def _round(self, weight: ir.Value) -> None:
        """Replace an initializer's tensor; the original is not changed, since clones share it."""
        exact = array_of(weight)
        with np.errstate(over="ignore"):
            rounded = exact.astype(self.format.numpy_type)
        _check_fit(str(weight.name), exact, rounded, self.format)
        weight.const_value = ir.tensor(rounded, name=weight.name)
        weight.type = ir.TensorType(self.data_type)


def _check_fit(name: str, exact: np.ndarray, rounded: np.ndarray, half: _Format) -> None:
    """Refuse values that overflow, and matrices that lose more than normal numbers do.

    A matrix loses more if most of it is subnormal. A vector is a bias, whose loss is negligible
    compared with the values that it is added to.
    """
    largest = float(np.abs(exact).max(initial=0))
    if not largest <= half.largest:
        raise ExportError(
            f"{name} reaches {largest:.3g}, {half.numpy_type} ends at {half.largest:.5g}; {WAY_OUT}"
        )
    lost = float(np.linalg.norm(rounded.astype(np.float32) - exact))
    allowed = float(np.linalg.norm(exact)) * half.roundoff
    if exact.ndim > 1 and lost > allowed:
        raise ExportError(
            f"{name} is too small for {half.numpy_type}: rounding changes it by {lost:.1e}, "
            f"allowed is {allowed:.1e}; {WAY_OUT}"
        )
