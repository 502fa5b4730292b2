"""Rewrites the fp16 graph with fused operators, for ONNX Runtime's CUDA provider.

There, each transformer block of the portable graph runs as about 30 kernels. The fused form uses
ONNX Runtime's own operators (domain com.microsoft) and needs 13 kernels for a block with an MLP:

    qkv product · bias and transpose of q, k, v · attention · output product
    · cast, SkipLayerNormalization, cast · up product · BiasGelu · down product
    · cast, SkipLayerNormalization, cast

Precisions are as in the portable graph: matrix products and attention in half precision, the
residual stream and LayerNorm in float32. The float32 stream needs the casts, because no operator of
ONNX Runtime adds a float16 branch to it. docs/adr/0012 has the alternatives.

Only arithmetic on shapes runs on the CPU provider, and nothing is copied between the providers, so
that a CUDA graph can be captured for every shape of one session; a test checks this. Therefore
values that depend only on the image's size are inputs, which the runtime computes once per shape:
the padding, and the matrices that resample the position table.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.position import COLUMNS_INPUT, ROWS_INPUT, table_taps
from dinov2rt.bundle.signature import ATTENTION
from dinov2rt.export.cuda.blocks import CONTRIB, Blocks
from dinov2rt.export.surgery import Writer

_HALF, _FLOAT, _INT64 = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.INT64
_PADDING = "padding"
_BEHIND_BLOCKS = ("layer_", "x_prenorm", "final", f"{ATTENTION}_map", "heads.")


def fuse(model: ir.Model, architecture: Architecture) -> None:
    """Rewrite `model`, the portable fp16 graph of `architecture`, in place.

    Its images keep their name, type and layout. Three inputs are added, or replaced:
    `padding` int64 [8], what ONNX calls `pads` for the images in their own layout, negative where
    pixels are dropped, so that the padded sides are multiples of the patch; `position_rows` and
    `position_columns`, see `bundle/position.py`. The outputs stay as they are.
    """
    graph = model.graph
    writer = Writer(graph, before=_first_head(graph))
    tokens = _embed(writer, architecture)
    Blocks(writer, architecture, tokens).write()
    RemoveUnusedNodesPass()(model)
    _drop_unused_initializers(graph)
    model.opset_imports[CONTRIB] = 1


def _first_head(graph: ir.Graph) -> ir.Node:
    """The first node after the blocks, in the order of the graph."""
    return next(node for node in graph if (node.name or "").startswith(_BEHIND_BLOCKS))


@dataclass(frozen=True, slots=True)
class _Grid:
    """Counts of a batch of images and of their patches, each int64 [1]."""

    batch: ir.Value
    rows: ir.Value
    columns: ir.Value


def _embed(write: Writer, architecture: Architecture) -> ir.Value:
    """Images to the tokens that enter the first block, [B, 1 + R + h·w, D] float32."""
    images = write.graph.inputs[0]
    is_pixels = images.dtype == ir.DataType.UINT8
    padding = _declare_inputs(write, images, architecture)
    if is_pixels:
        scale, shift = (
            write.array(name).reshape(1, 1, 1, 3) for name in ("pixel_scale", "pixel_shift")
        )
        images = write("Cast", images, name="pixels/float", dtype=_FLOAT)
        images = write("Mul", images, scale, name="pixels/scaled")
        images = write("Add", images, shift, name="pixels/normalized")
    padded = write("Pad", images, padding, name="embedding/padded")
    grid = _grid(write, padded, architecture.patch_size, is_pixels)
    patches = _patches(write, padded, grid, architecture.patch_size, is_pixels)
    weight = write.array("patch_weight")  # [D, 3, P, P]
    order = (2, 3, 1, 0) if is_pixels else (1, 2, 3, 0)
    weight = weight.transpose(order).reshape(-1, architecture.embed_dim)
    product = write("MatMul", patches, weight, name="embedding.patch/product", dtype=_HALF)
    product = write("Cast", product, name="embedding.patch/float", dtype=_FLOAT)
    patch_tokens = write(
        "Add", product, _positions(write, architecture), name="embedding/patch_tokens"
    )
    return _behind_prefix(write, patch_tokens, grid)


def _behind_prefix(write: Writer, patch_tokens: ir.Value, grid: _Grid) -> ir.Value:
    """The prefix, which is CLS and registers, and the patch tokens: [B, 1 + R + h·w, D].

    They are added, each padded with zeros to the whole length, which is exact. The CUDA kernel of
    Concat would read the lengths of its parts from host memory that ONNX Runtime reuses after the
    call. A captured CUDA graph reads it again at every launch.
    """
    prefix = write.array("prefix")
    # What ONNX calls pads: the zeros before each of the three axes, then those after each.
    before = np.array([0, prefix.shape[1], 0, 0, 0, 0])
    num_patches = write("Mul", grid.rows, grid.columns, name="embedding/num_patches", dtype=_INT64)
    outer, last = np.zeros(4, np.int64), np.zeros(1, np.int64)
    after = write("Concat", outer, num_patches, last, name="embedding/after", dtype=_INT64, axis=0)
    patch_tokens = write("Pad", patch_tokens, before, name="embedding/behind_prefix")
    padded = write("Pad", write.initializer("prefix"), after, name="embedding/prefix")
    return write("Add", patch_tokens, padded, name="embedding/tokens")


def _declare_inputs(write: Writer, images: ir.Value, architecture: Architecture) -> ir.Value:
    """Take out the inputs that the portable graph has besides its images, and declare our own.

    Returns:
        The padding. It has no default, since ONNX Runtime cannot bind an input that has one.
    """
    graph = write.graph
    graph.initializers.pop(_PADDING, None)
    padding = ir.val(_PADDING, dtype=_INT64, shape=[8])
    taps = table_taps(architecture)
    sides = ((ROWS_INPUT, "rows", taps.rows), (COLUMNS_INPUT, "columns", taps.cols))
    matrices = [
        ir.val(name, dtype=_FLOAT, shape=ir.Shape([side, count])) for name, side, count in sides
    ]
    graph.inputs[:] = [images, padding, *matrices]
    return padding


def _grid(write: Writer, padded: ir.Value, patch_size: int, is_pixels: bool) -> _Grid:
    """The counts, from the shape of the padded images."""
    height, width = (1, 2) if is_pixels else (2, 3)
    batch = write("Shape", padded, name="patches/batch", dtype=_INT64, start=0, end=1)
    sides = []
    for name, axis in (("rows", height), ("columns", width)):
        pixels = write(
            "Shape", padded, name=f"patches/{name}_pixels", dtype=_INT64, start=axis, end=axis + 1
        )
        side = np.array([patch_size])
        sides.append(write("Div", pixels, side, name=f"patches/{name}", dtype=_INT64))
    return _Grid(batch, *sides)


def _patches(
    write: Writer, padded: ir.Value, grid: _Grid, patch_size: int, is_pixels: bool
) -> ir.Value:
    """Padded images to the pixels of each patch of P × P, [B, h·w, 3 · P · P] float16.

    A convolution whose stride is its kernel is a product of these; ONNX Runtime's own convolution
    kernel for such a patch takes much longer.
    """
    batch, rows, columns = grid.batch, grid.rows, grid.columns
    side, channels = np.array([patch_size]), np.array([3])
    if is_pixels:  # [B, h, P, w, P · 3]
        cells = [batch, rows, side, columns, side * channels]
        order = [0, 1, 3, 2, 4]
    else:  # [B, 3, h, P, w, P]
        cells = [batch, channels, rows, side, columns, side]
        order = [0, 2, 4, 1, 3, 5]
    shape = write("Concat", *cells, name="patches/cells", dtype=_INT64, axis=0)
    split = write("Reshape", padded, shape, name="patches/split")
    ordered = write("Transpose", split, name="patches/ordered", perm=order)
    half = write("Cast", ordered, name="patches/half", dtype=_HALF)
    length = np.array([-1]), np.array([3 * patch_size**2])
    flat = write("Concat", batch, *length, name="patches/flat", dtype=_INT64, axis=0)
    return write("Reshape", half, flat, name="patches", dtype=_HALF)


def _positions(write: Writer, architecture: Architecture) -> ir.Value:
    """The position of every patch, plus the bias of the patch embedding: [1, h·w, D] float32."""
    rows, columns = write.graph.inputs[2:4]
    table = write.initializer("position.table")  # [row taps, column taps · D]
    taps, dim = table_taps(architecture), architecture.embed_dim
    down = write("MatMul", rows, table, name="position/rows")
    down = write("Reshape", down, np.array([-1, taps.cols, dim]), name="position/of_rows")
    across = write("MatMul", columns, down, name="position/columns")
    flat = write("Reshape", across, np.array([1, -1, dim]), name="position/flat")
    bias = write.array("patch_bias").astype(np.float32)
    return write("Add", flat, bias, name="position/with_bias")


def _drop_unused_initializers(graph: ir.Graph) -> None:
    used = {value.name for node in graph for value in node.inputs if value is not None}
    used |= {value.name for value in graph.inputs}
    for name in [name for name in graph.initializers if name not in used]:
        del graph.initializers[name]
