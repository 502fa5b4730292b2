"""Graphs for older runtimes: the same function in operators that they have."""

import numpy as np
import onnx_ir as ir

from dinov2rt.bundle.signature import OPSET
from dinov2rt.errors import InputError
from dinov2rt.export.surgery import Writer, add_initializer, array_of, bypass, nodes_of

_IR_VERSIONS = {17: 8, 20: 9, 21: 10}
"""The version of the file format that came with each opset: a runtime refuses later ones.

Of 18 and 19, ONNX Runtime 1.15 and 1.16 cannot compute a float16 Softmax; they read 17 as well.
"""

_FIRST_WITH_GELU, _FIRST_WITH_NUM_OUTPUTS = 20, 18


def check_opset(opset: int) -> None:
    """Refuse an opset that graphs cannot be written in.

    Raises:
        InputError: this opset is not allowed.
    """
    if opset not in (*_IR_VERSIONS, OPSET):
        raise InputError(
            f"opset {opset}; allowed are 17 (ONNX Runtime from 1.15 on, and what reads 18 or 19), "
            f"20 (from 1.17 on), 21 (from 1.18 on) and {OPSET} (from 1.23 on)"
        )


def lower(model: ir.Model, opset: int) -> None:
    """Write `model`, which is of `OPSET`, in the operators of `opset`, in place.

    `Attention` becomes MatMul, Softmax and MatMul; its scale is in the query's weights. Norms get a
    bias of zeros. Before opset 20, `Gelu` becomes its formula, and before 18 the axes of a mean are
    an attribute. All other operators mean the same in every allowed opset.
    """
    if opset == OPSET:
        return
    for node in nodes_of(model, "Attention"):
        _write_attention(model.graph, node)
    for node in nodes_of(model, "LayerNormalization"):
        _give_bias(model.graph, node)
    if opset < _FIRST_WITH_GELU:
        for node in nodes_of(model, "Gelu"):
            _write_gelu(model.graph, node)
    if opset < _FIRST_WITH_NUM_OUTPUTS:
        _rewrite_attributes(model)
    model.opset_imports[""] = opset
    model.ir_version = _IR_VERSIONS[opset]


def _write_attention(graph: ir.Graph, attention: ir.Node) -> None:
    """`softmax(q kᵀ) v` of [B, heads, N, head_dim]."""
    query, key, value = attention.inputs
    dtype, name = attention.outputs[0].dtype or ir.DataType.FLOAT, attention.name
    write = Writer(graph, before=attention)
    turned = write("Transpose", key, name=f"{name}/turned", dtype=dtype, perm=[0, 1, 3, 2])
    scores = write("MatMul", query, turned, name=f"{name}/scores", dtype=dtype)
    weights = write("Softmax", scores, name=f"{name}/softmax", dtype=dtype, axis=-1)
    mixed = write("MatMul", weights, value, name=f"{name}/mixed", dtype=dtype)
    bypass(graph, attention, mixed)


def _give_bias(graph: ir.Graph, norm: ir.Node) -> None:
    """Zeros where a norm has no bias: optimisers of older ONNX Runtimes crash without one."""
    if len(norm.inputs) > 2 and norm.inputs[2] is not None:
        return
    scale = array_of(norm.inputs[1])
    norm.resize_inputs(3)
    norm.replace_input_with(2, add_initializer(graph, f"{norm.name}/no_bias", np.zeros_like(scale)))


def _rewrite_attributes(model: ir.Model) -> None:
    """Move attributes and inputs back to where they were before opset 18."""
    for split in nodes_of(model, "Split"):  # into equal parts, which was then the only way
        split.attributes.pop("num_outputs", None)
    for mean in nodes_of(model, "ReduceMean"):
        _give_axes(mean)


def _give_axes(mean: ir.Node) -> None:
    """The axes as an attribute, which they were before opset 18."""
    if len(mean.inputs) > 1:
        axes = [int(axis) for axis in array_of(mean.inputs[1])]
        mean.resize_inputs(1)
        mean.attributes["axes"] = ir.AttrInt64s("axes", axes)


def _write_gelu(graph: ir.Graph, gelu: ir.Node) -> None:
    """`x / 2 · (1 + erf(x / √2))`: ONNX Runtime fuses it in this form, with a division by √2."""
    values, name = gelu.inputs[0], gelu.name
    dtype = gelu.outputs[0].dtype or ir.DataType.FLOAT
    numbers = dtype.numpy()
    write = Writer(graph, before=gelu)
    root = np.array(np.sqrt(2), numbers)
    scaled = write("Div", values, root, name=f"{name}/scaled", dtype=dtype)
    erf = write("Erf", scaled, name=f"{name}/erf", dtype=dtype)
    raised = write("Add", erf, np.array(1, numbers), name=f"{name}/raised", dtype=dtype)
    half = write("Mul", values, np.array(0.5, numbers), name=f"{name}/half", dtype=dtype)
    bypass(graph, gelu, write("Mul", half, raised, name=f"{name}/gelu", dtype=dtype))
