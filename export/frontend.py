"""Adds the pixel input to a graph: uint8 RGB, normalized inside the graph."""

import numpy as np
import onnx_ir as ir

from dinov2rt.bundle.normalization import Normalization
from dinov2rt.export.surgery import Writer, module_of

PADDING_INPUT = "padding"
HEIGHT_NODE, WIDTH_NODE = "image/height", "image/width"
"""Nodes of a graph with heads that read the image's own size from its input."""

_CENTER = "center_padding"
_INT64 = ir.DataType.INT64


def attach_pixel_input(model: ir.Model, normalization: Normalization) -> None:
    """Replace the input `images` by `pixels`, uint8 [batch, height, width, 3].

    Normalization, `(pixel / 255 - mean) / std`, is one multiplication and one addition per channel.
    Unless the graph pads itself (see `attach_center_padding`), there is a second, optional input
    `padding`, int64 [8], which is zero by default. It is ONNX's `pads` for the normalized images.
    Normalized images are padded, not pixels, because no uint8 colour is zero after normalization.
    """
    graph = model.graph
    (images,) = graph.inputs
    std = np.array(normalization.std)
    scale = _constant("pixel_scale", _per_channel(1 / (255 * std)))
    shift = _constant("pixel_shift", _per_channel(-np.array(normalization.mean) / std))
    pixels = ir.val(
        "pixels", dtype=ir.DataType.UINT8, shape=ir.Shape(["batch", "height", "width", 3])
    )
    _read_sizes_from(images, pixels)
    # Cast before Transpose: in TensorRT, only a Cast may read a uint8 input.
    cast = ir.node("Cast", [pixels], {"to": ir.DataType.FLOAT}, name="pixels/Cast")
    planar = ir.node("Transpose", cast.outputs, {"perm": [0, 3, 1, 2]}, name="pixels/Transpose")
    scaled = ir.node("Mul", [planar.outputs[0], scale], name="pixels/Mul")
    normed = ir.node("Add", [scaled.outputs[0], shift], name="pixels/Add")
    nodes, inputs = [cast, planar, scaled, normed], [pixels]
    if not pads_itself(model):
        padding = _constant(PADDING_INPUT, np.zeros(8, dtype=np.int64))
        nodes.append(ir.node("Pad", [normed.outputs[0], padding], name="pixels/Pad"))
        inputs.append(padding)
        graph.initializers.add(padding)
    _replace_input(graph, images, tuple(nodes))
    graph.inputs[:] = inputs
    for value in (scale, shift):
        graph.initializers.add(value)


def attach_center_padding(model: ir.Model, patch_size: int) -> None:
    """Make the graph pad its normalized images with zeros to whole patches, centred.

    An odd pixel goes to the bottom or the right. Source: `CenterPadding` in `dinov2/hub/utils.py`.
    """
    graph = model.graph
    (images,) = graph.inputs
    users = [(use.node, use.idx) for use in images.uses() if not _reads_size(use.node)]
    write = Writer(graph, before=graph[0])
    before, after = [], []
    for axis in (2, 3):
        name = f"{_CENTER}/axis_{axis}"
        side = write("Shape", images, name=f"{name}_side", dtype=_INT64, start=axis, end=axis + 1)
        patch = np.array([patch_size])
        over = write("Mod", side, patch, name=f"{name}_over", dtype=_INT64)
        lacking = write("Sub", patch, over, name=f"{name}_lacking", dtype=_INT64)
        pad = write("Mod", lacking, patch, name=f"{name}_pad", dtype=_INT64)
        start = write("Div", pad, np.array([2]), name=f"{name}_before", dtype=_INT64)
        before.append(start)
        after.append(write("Sub", pad, start, name=f"{name}_after", dtype=_INT64))
    none = np.zeros(2, np.int64)
    pads = write(
        "Concat", none, *before, none, *after, name=f"{_CENTER}/pads", dtype=_INT64, axis=0
    )
    padded = write("Pad", images, pads, name=f"{_CENTER}/padded")
    for node, index in users:
        node.replace_input_with(index, padded)


def pads_itself(model: ir.Model) -> bool:
    """Whether `attach_center_padding` was applied to the graph."""
    return any(module_of(node) == _CENTER for node in model.graph)


def _reads_size(node: ir.Node) -> bool:
    return node.name in (HEIGHT_NODE, WIDTH_NODE)


def _read_sizes_from(images: ir.Value, pixels: ir.Value) -> None:
    """Make the nodes that read the image's size read it from `pixels` [B, H, W, 3]."""
    for use in list(images.uses()):
        if _reads_size(use.node):
            axis = 1 if use.node.name == HEIGHT_NODE else 2
            use.node.replace_input_with(0, pixels)
            use.node.attributes["start"] = ir.AttrInt64("start", axis)
            use.node.attributes["end"] = ir.AttrInt64("end", axis + 1)


def _replace_input(graph: ir.Graph, images: ir.Value, nodes: tuple[ir.Node, ...]) -> None:
    graph.insert_before(graph[0], nodes)
    names = ("cast", "planar", "scaled", "normed", "padded")
    for node, name in zip(nodes, names[: len(nodes)], strict=True):
        node.outputs[0].name = f"pixels_{name}"
    ir.convenience.replace_all_uses_with(images, nodes[-1].outputs[0])


def _per_channel(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).reshape(1, 3, 1, 1)


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.val(name, dtype=tensor.dtype, shape=array.shape, const_value=tensor)
