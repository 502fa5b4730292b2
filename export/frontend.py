"""The pixel front end: uint8 RGB in, normalisation inside the graph."""

import numpy as np
import onnx_ir as ir

from dinov2rt.bundle.normalization import Normalization

PADDING_INPUT = "padding"


def attach_pixel_input(model: ir.Model, normalization: Normalization) -> None:
    """Put `pixels` uint8 [batch, height, width, 3] before the input `images`.

    `pixel / 255`, less the mean, over the standard deviation, is one product and one sum per
    channel. A second input, `padding` int64 [8], defaults to zeros and may be left out. It is what
    ONNX calls `pads`, for the normalised images: zeros there, with which the official depth heads
    pad, are no uint8 colour.
    """
    graph = model.graph
    (images,) = graph.inputs
    std = np.array(normalization.std)
    scale = _constant("pixel_scale", _per_channel(1 / (255 * std)))
    shift = _constant("pixel_shift", _per_channel(-np.array(normalization.mean) / std))
    padding = _constant(PADDING_INPUT, np.zeros(8, dtype=np.int64))
    pixels = ir.val(
        "pixels", dtype=ir.DataType.UINT8, shape=ir.Shape(["batch", "height", "width", 3])
    )
    # Cast before Transpose: TensorRT takes a uint8 input only into a Cast.
    cast = ir.node("Cast", [pixels], {"to": ir.DataType.FLOAT}, name="pixels/Cast")
    planar = ir.node("Transpose", cast.outputs, {"perm": [0, 3, 1, 2]}, name="pixels/Transpose")
    scaled = ir.node("Mul", [planar.outputs[0], scale], name="pixels/Mul")
    normed = ir.node("Add", [scaled.outputs[0], shift], name="pixels/Add")
    padded = ir.node("Pad", [normed.outputs[0], padding], name="pixels/Pad")
    _replace_input(graph, images, (cast, planar, scaled, normed, padded))
    graph.inputs[:] = [pixels, padding]
    for value in (scale, shift, padding):
        graph.initializers.add(value)


def _replace_input(graph: ir.Graph, images: ir.Value, nodes: tuple[ir.Node, ...]) -> None:
    graph.insert_before(graph[0], nodes)
    for node, name in zip(nodes, ("cast", "planar", "scaled", "normed", "padded"), strict=True):
        node.outputs[0].name = f"pixels_{name}"
    ir.convenience.replace_all_uses_with(images, nodes[-1].outputs[0])


def _per_channel(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).reshape(1, 3, 1, 1)


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.val(name, dtype=tensor.dtype, shape=array.shape, const_value=tensor)
