"""Turns a trace into the graph of one precision: folded, typed, with heads and the input."""

import onnx_ir as ir

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.export.folding import fold, fold_attention_scale, fold_norms, split_qkv
from dinov2rt.export.frontend import attach_center_padding, attach_pixel_input
from dinov2rt.export.heads.checkpoint import EagerHead
from dinov2rt.export.heads.graph import attach_heads
from dinov2rt.export.heads.taps import attach_attention
from dinov2rt.export.options import ExportOptions
from dinov2rt.export.portable.opset import lower
from dinov2rt.export.typed import half_outputs, to_half


def finish(
    model: ir.Model,
    architecture: Architecture,
    precision: Precision,
    options: ExportOptions,
    heads: tuple[EagerHead, ...],
) -> ir.Model:
    """Fold, type, and attach the input: from a clone of the trace to what is saved.

    For int8 it is a float32 graph, which is then quantised in the search.
    """
    if precision in (Precision.FP32, Precision.INT8):
        fold(model, architecture)
        _attach_taps(model, architecture, options, heads)
        if precision is Precision.FP32:
            fold_norms(model)
            split_qkv(model)
    else:
        fold_attention_scale(model, architecture)
        _attach_taps(model, architecture, options, heads)
        to_half(model, precision)
        if options.half_outputs:
            half_outputs(model, precision)
    if options.input_format is InputFormat.PIXELS:
        attach_pixel_input(model, architecture.normalization)
    lower(model, options.opset)
    return model


def _attach_taps(
    model: ir.Model,
    architecture: Architecture,
    options: ExportOptions,
    heads: tuple[EagerHead, ...],
) -> None:
    """Attach layers, attention maps and heads, after the weights are folded."""
    if options.attention:
        attach_attention(model, architecture)
    attach_heads(model, architecture, heads)
    if any(head.spec.is_dense for head in heads):
        attach_center_padding(model, architecture.patch_size)
