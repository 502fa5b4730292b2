"""Heads as nodes of the backbone's graph, from tokens to the task's output."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.heads import Decoder
from dinov2rt.bundle.signature import scores_name
from dinov2rt.export.heads.algebra import Array, bin_weights, fold_batch_norm, split_levels
from dinov2rt.export.heads.backbone import Backbone
from dinov2rt.export.heads.bilinear import Sides, bilinear_matrix, resize_planes, resize_tokens
from dinov2rt.export.heads.checkpoint import EagerHead
from dinov2rt.export.heads.dpt import dpt_depth
from dinov2rt.export.heads.eager import BATCH_NORM_EPS, BINS
from dinov2rt.export.surgery import Writer

_INT64 = ir.DataType.INT64
_LEAST_WEIGHT = 0.1
_UPSAMPLING = 4
_BANDS = 8
"""Parts that a class map is made of, so that scores of all pixels are never in memory at once."""

_MOST_CLASSES = 256


def attach_heads(model: ir.Model, architecture: Architecture, heads: Sequence[EagerHead]) -> None:
    """Add every head and its outputs to the backbone's graph, in their order."""
    if not heads:
        return
    backbone = Backbone(model, architecture)
    for head in heads:
        state = {name: value.numpy() for name, value in head.module.state_dict().items()}
        outputs = _WRITERS[head.spec.decoder](backbone, head, state)
        for name, (value, shape) in outputs.items():
            value.name, value.shape = name, ir.Shape(shape)
            model.graph.outputs.append(value)


_Outputs = dict[str, tuple[ir.Value, list[int | str]]]


def _classifier(backbone: Backbone, head: EagerHead, state: dict[str, Array]) -> _Outputs:
    write, name = backbone.write, _name(head)
    layers = head.entry.layers
    parts = [backbone.normed_cls_token(layer) for layer in layers]
    if head.entry.uses_mean:
        patches = backbone.patches(backbone.normed(layers[-1]), name)
        parts.append(write("ReduceMean", patches, np.array([1]), name=f"{name}/mean", keepdims=0))
    features = write("Concat", *parts, name=f"{name}/features", axis=1)
    product = write("MatMul", features, state["weight"].T, name=f"{name}/product")
    logits = write("Add", product, state["bias"], name=f"{name}/logits")
    return {head.entry.output: (logits, ["batch", len(state["bias"])])}


def _bins(backbone: Backbone, head: EagerHead, state: dict[str, Array]) -> _Outputs:
    write, name = backbone.write, _name(head)
    low, high = _range(head)
    weights = split_levels(state["conv_depth.weight"], len(head.entry.layers))
    grid = backbone.grid
    large = backbone.times(grid, _UPSAMPLING, f"{name}.large")
    logits = _level_products(backbone, head, weights, state["conv_depth.bias"])
    rows = bilinear_matrix(write, grid.height, large.height, f"{name}.up_rows")
    columns = bilinear_matrix(write, grid.width, large.width, f"{name}.up_columns")
    large_logits = resize_tokens(write, logits, BINS, grid, rows, columns, f"{name}.up")
    matrix, shift = bin_weights(low, high, BINS, _LEAST_WEIGHT)
    sums = write("MatMul", write("Relu", large_logits, name=f"{name}/relu"), matrix,
                 name=f"{name}/sums")  # fmt: skip
    shifted = write("Add", sums, shift, name=f"{name}/shifted")  # [B, 4h, 4w, 2]
    numerator, denominator = (
        write("Gather", shifted, np.array(index), name=f"{name}/{part}", axis=3)
        for index, part in enumerate(("numerator", "denominator"))
    )
    depth = write("Div", numerator, denominator, name=f"{name}/lowres")
    return _depth_output(backbone, head, depth, large)


def _level_products(
    backbone: Backbone, head: EagerHead, weights: list[tuple[Array, Array]], bias: Array
) -> ir.Value:
    """Logits of all bins at the grid's size, [B, h·w, 256]: steps 1 and 2 of the algebra."""
    write, name = backbone.write, _name(head)
    patches: ir.Value | None = None
    constant: ir.Value | None = None
    for layer, (of_patches, of_cls) in zip(head.entry.layers, weights, strict=True):
        tokens, place = backbone.stream(layer), f"{name}.layer_{layer}"
        product = write("MatMul", tokens, of_patches, name=f"{place}/product")
        cls_token = backbone.cls_token(tokens, place)
        cls_product = write("MatMul", cls_token, of_cls, name=f"{place}/cls_product")
        patches = _sum(backbone, patches, product, f"{place}/sum")
        constant = _sum(backbone, constant, cls_product, f"{place}/cls_sum")
    shift = write("Add", constant, bias, name=f"{name}/constant")
    row = write("Unsqueeze", shift, np.array([1]), name=f"{name}/constant_row")
    if patches is None:
        raise ValueError(f"{name} reads no layer")
    return write("Add", backbone.patches(patches, name), row, name=f"{name}/bins")


def _sum(backbone: Backbone, total: ir.Value | None, term: ir.Value, name: str) -> ir.Value:
    return term if total is None else backbone.write("Add", total, term, name=name)


def _dpt(backbone: Backbone, head: EagerHead, state: dict[str, Array]) -> _Outputs:
    low, _ = _range(head)
    depth, size = dpt_depth(backbone, _name(head), head.entry.layers, state, low)
    return _depth_output(backbone, head, depth, size)


def _depth_output(backbone: Backbone, head: EagerHead, depth: ir.Value, size: Sides) -> _Outputs:
    """Depth [B, h', w'] in its range and at the image's size, [B, H, W]."""
    write, name = backbone.write, _name(head)
    low, high = (np.float32(each) for each in _range(head))
    clipped = write("Clip", depth, low, high, name=f"{name}/clipped")
    resized = resize_planes(write, clipped, size, backbone.image, f"{name}.resize")
    return {head.entry.output: (resized, ["batch", "height", "width"])}


def _pixels(backbone: Backbone, head: EagerHead, state: dict[str, Array]) -> _Outputs:
    write, name = backbone.write, _name(head)
    classes = len(state["conv_seg.bias"])
    if classes > _MOST_CLASSES:
        raise ValueError(f"{classes} classes do not fit into uint8")
    norm = (state["bn.weight"], state["bn.bias"], state["bn.running_mean"], state["bn.running_var"])
    weight, bias = fold_batch_norm(
        state["conv_seg.weight"].reshape(classes, -1), state["conv_seg.bias"], norm, BATCH_NORM_EPS
    )
    total: ir.Value | None = None
    for layer, part in zip(
        head.entry.layers, np.split(weight, len(head.entry.layers), axis=1), strict=True
    ):
        place = f"{name}.layer_{layer}"
        product = write("MatMul", backbone.normed(layer), part.T, name=f"{place}/product")
        total = _sum(backbone, total, product, f"{place}/sum")
    biased = write("Add", total, bias, name=f"{name}/biased")
    scores = backbone.patches(biased, name)  # [B, h·w, K]
    output = head.entry.output
    return {
        output: (_class_map(backbone, name, scores, classes), ["batch", "height", "width"]),
        scores_name(output): (
            _planes(backbone, name, scores),
            ["batch", classes, "rows", "columns"],
        ),
    }


def _planes(backbone: Backbone, name: str, tokens: ir.Value) -> ir.Value:
    """[B, h·w, K] to [B, K, h, w]."""
    write = backbone.write
    planes = write("Transpose", tokens, name=f"{name}/planes", perm=[0, 2, 1])
    zero, rest = np.array([0]), np.array([-1])
    shape = write(
        "Concat", zero, zero, backbone.grid.height, rest, name=f"{name}/planes_shape",
        dtype=_INT64, axis=0,
    )  # fmt: skip
    return write("Reshape", planes, shape, name=f"{name}/scores")


def _class_map(backbone: Backbone, name: str, scores: ir.Value, classes: int) -> ir.Value:
    """Scores [B, h·w, K] resampled to the image's size, and the best class: uint8 [B, H, W].

    Classes stand before columns while scores are resampled: the columns of all classes and rows
    are one product then, and a search along an outer axis reads neighbours together.
    """
    write, grid, image = backbone.write, backbone.grid, backbone.image
    up = write("Add", image.height, np.array([_BANDS - 1]), name=f"{name}/height_up", dtype=_INT64)
    band = write("Div", up, np.array([_BANDS]), name=f"{name}/band", dtype=_INT64)
    all_rows = write("Mul", band, np.array([_BANDS]), name=f"{name}/band_rows", dtype=_INT64)
    rows = bilinear_matrix(write, grid.height, image.height, f"{name}.map_rows", all_rows)
    columns = bilinear_matrix(write, grid.width, image.width, f"{name}.map_columns")
    maps = _Maps(
        lines=_class_lines(backbone, name, scores, classes),
        columns=write("Transpose", columns, name=f"{name}.map_columns/t", perm=[0, 2, 1]),
        flat=_shape(write, f"{name}/flat", 0, -1, grid.width),
        whole=_shape(write, f"{name}/whole", 0, -1, classes, image.width),
    )
    parts = [
        _class_band(write, f"{name}.band_{index}", maps, _cut(write, rows, band, index, name))
        for index in range(_BANDS)
    ]
    joined = write("Concat", *parts, name=f"{name}/bands", dtype=ir.DataType.FLOAT, axis=1)
    cut = write("Slice", joined, np.array([0]), image.height, np.array([1]), name=f"{name}/map")
    # By way of float: TensorRT makes uint8 of nothing else.
    return write("Cast", cut, name=f"{name}/classes", dtype=ir.DataType.UINT8)


@dataclass(frozen=True, slots=True)
class _Maps:
    """Holds the values that all bands of a class map share.

    `lines` are scores [B, h, K·w], `columns` the weights [1, w, W]. `flat` and `whole` are shapes,
    [B, r·K, w] and [B, r, K, W], for a band of r rows.
    """

    lines: ir.Value
    columns: ir.Value
    flat: ir.Value
    whole: ir.Value


def _class_lines(backbone: Backbone, name: str, scores: ir.Value, classes: int) -> ir.Value:
    """[B, h·w, K] to [B, h, K·w]."""
    write, grid = backbone.write, backbone.grid
    cells = _shape(write, f"{name}/cells", 0, grid.height, grid.width, classes)
    of_cells = write("Reshape", scores, cells, name=f"{name}/of_cells")
    turned = write("Transpose", of_cells, name=f"{name}/turned", perm=[0, 1, 3, 2])
    return write(
        "Reshape", turned, _shape(write, f"{name}/lines_shape", 0, 0, -1), name=f"{name}/lines"
    )


def _shape(write: Writer, name: str, *sides: int | ir.Value) -> ir.Value:
    """A shape for Reshape, of numbers and of sides [1] that are known when it runs."""
    parts = [np.array([side]) if isinstance(side, int) else side for side in sides]
    return write("Concat", *parts, name=name, dtype=_INT64, axis=0)


def _cut(write: Writer, rows: ir.Value, band: ir.Value, index: int, name: str) -> ir.Value:
    """The rows [1, r, h] of one band."""
    start, stop = (
        write("Mul", band, np.array([at]), name=f"{name}/band_{index}_{tag}", dtype=_INT64)
        for tag, at in (("start", index), ("stop", index + 1))
    )
    return write("Slice", rows, start, stop, np.array([1]), name=f"{name}/band_{index}_rows")


def _class_band(write: Writer, name: str, maps: _Maps, rows: ir.Value) -> ir.Value:
    """Classes [B, r, W] of the rows of the image that `rows` [1, r, h] resamples, as float32."""
    down = write("MatMul", rows, maps.lines, name=f"{name}/down")  # [B, r, K·w]
    flat = write("Reshape", down, maps.flat, name=f"{name}/flat")
    across = write("MatMul", flat, maps.columns, name=f"{name}/across")
    values = write("Reshape", across, maps.whole, name=f"{name}/values")
    best = write("ArgMax", values, name=f"{name}/best", dtype=_INT64, axis=2, keepdims=0)
    return write("Cast", best, name=f"{name}/best_float", dtype=ir.DataType.FLOAT)


def _range(head: EagerHead) -> tuple[float, float]:
    if head.spec.depth_range is None:
        raise ValueError(f"{head.spec.name} has no range")
    return head.spec.depth_range


def _name(head: EagerHead) -> str:
    return f"heads.{head.spec.infix}"


_WRITERS = {
    Decoder.CLASSIFIER: _classifier,
    Decoder.BINS: _bins,
    Decoder.DPT: _dpt,
    Decoder.PIXELS: _pixels,
}
