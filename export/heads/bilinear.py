"""Bilinear resampling in the graph, as dense products with weights from whole numbers.

ONNX's Resize rounds each coordinate at its own size, which is where float32 loses digits, and every
library rounds otherwise. Here the distance between a coordinate and a sample is taken in integers:
`relu(1 - |num - den · j| / den)`, with `num = (2i + 1) · inputs - outputs`, `den = 2 · outputs`.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dinov2rt.export.surgery import Operand, Writer

_INT64, _FLOAT = ir.DataType.INT64, ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class Sides:
    """Height and width as values of the graph, int64 [1] each."""

    height: ir.Value
    width: ir.Value


def bilinear_matrix(
    write: Writer, inputs: ir.Value, outputs: ir.Value, name: str, rows: ir.Value | None = None
) -> ir.Value:
    """Weights [1, rows, inputs] float32 with half-pixel centres, clamped to the border.

    `rows` is how many are made, by default as many as `outputs`; those beyond repeat the last
    sample. See `bundle/tasks/bilinear.py`, which computes the same in numpy.
    """

    def node(kind: str, *operands: Operand, tag: str) -> ir.Value:
        return write(kind, *operands, name=f"{name}/{tag}", dtype=_INT64)

    index = node("Unsqueeze", _range(write, rows or outputs, f"{name}/i"), np.array([1]), tag="row")
    samples = node("Unsqueeze", _range(write, inputs, f"{name}/j"), np.array([0]), tag="column")
    odd = node("Add", node("Mul", index, np.array(2), tag="twice"), np.array(1), tag="odd")
    source = node("Sub", node("Mul", odd, inputs, tag="scaled"), outputs, tag="source")
    unit = node("Mul", outputs, np.array(2), tag="unit")
    last = node("Mul", unit, node("Sub", inputs, np.array(1), tag="last"), tag="farthest")
    inside = node("Min", node("Max", source, np.array(0), tag="from"), last, tag="inside")
    offset = node("Sub", inside, node("Mul", unit, samples, tag="samples"), tag="offset")
    # Not Abs: OpenVINO computes it wrongly where it is fused; see docs/adr/0008.
    distance = node("Max", offset, node("Neg", offset, tag="negative"), tag="distance")
    share = write(
        "Div",
        write("Cast", distance, name=f"{name}/distance_float", dtype=_FLOAT),
        write("Cast", unit, name=f"{name}/unit_float", dtype=_FLOAT),
        name=f"{name}/share",
    )
    weights = write(
        "Relu", write("Sub", np.float32(1), share, name=f"{name}/rest"), name=f"{name}/w"
    )
    return write("Unsqueeze", weights, np.array([0]), name=f"{name}/matrix")


def resize_planes(
    write: Writer, planes: ir.Value, source: Sides, target: Sides, name: str
) -> ir.Value:
    """[B, h, w] to [B, H, W]."""
    rows = bilinear_matrix(write, source.height, target.height, f"{name}.rows")
    columns = bilinear_matrix(write, source.width, target.width, f"{name}.columns")
    transposed = write("Transpose", columns, name=f"{name}/columns", perm=[0, 2, 1])
    down = write("MatMul", rows, planes, name=f"{name}/down")
    return write("MatMul", down, transposed, name=f"{name}/across")


def resize_tokens(
    write: Writer,
    tokens: ir.Value,
    channels: int,
    source: Sides,
    rows: ir.Value,
    columns: ir.Value,
    name: str,
) -> ir.Value:
    """[B, h·w, C] to [B, H, W, C], with the matrices `rows` [1, H, h] and `columns` [1, W, w]."""
    zero, rest, depth = np.array([0]), np.array([-1]), np.array([channels])
    flat = write("Concat", zero, source.height, rest, name=f"{name}/flat", dtype=_INT64, axis=0)
    lines = write("Reshape", tokens, flat, name=f"{name}/lines")  # [B, h, w·C]
    down = write("MatMul", rows, lines, name=f"{name}/down")
    cells = write(
        "Concat", zero, zero, source.width, depth, name=f"{name}/cells", dtype=_INT64, axis=0
    )
    down = write("Reshape", down, cells, name=f"{name}/of_lines")  # [B, H, w, C]
    batched = write("Unsqueeze", columns, np.array([0]), name=f"{name}/columns")
    return write("MatMul", batched, down, name=f"{name}/across")


def _range(write: Writer, count: ir.Value, name: str) -> ir.Value:
    scalar = write("Squeeze", count, np.array([0]), name=f"{name}_count", dtype=_INT64)
    return write("Range", np.array(0), scalar, np.array(1), name=name, dtype=_INT64)
