"""The DPT decoder as nodes of the graph; `eager.py` has the same as modules."""

from typing import Any

import numpy as np
import onnx_ir as ir

from dinov2rt.export.heads.algebra import Array, shuffle_weight, split_levels
from dinov2rt.export.heads.backbone import Backbone
from dinov2rt.export.heads.bilinear import Sides

_INT64 = ir.DataType.INT64
_State = dict[str, Array]


def dpt_depth(
    backbone: Backbone, name: str, layers: tuple[int, ...], state: _State, low: float
) -> tuple[ir.Value, Sides]:
    """Depth in metres before its clamp, [B, 32⌈h/2⌉, 32⌈w/2⌉], and that size."""
    decoder = _Decoder(backbone, f"{name}.decoder", state)
    skips = [decoder.skip(level, layer) for level, layer in enumerate(layers)]
    values = decoder.fuse(0, skips[3], None)
    for index in (1, 2, 3):
        values = decoder.fuse(index, values, skips[3 - index])
    logits = decoder.head(values)
    write = backbone.write
    plane = write("Squeeze", logits, np.array([1]), name=f"{name}/plane")
    positive = write("Relu", plane, name=f"{name}/positive")
    depth = write("Add", positive, np.float32(low), name=f"{name}/metres")
    size = Sides(*(decoder.side(depth, axis, name) for axis in (1, 2)))
    return depth, size


class _Decoder:
    """Writes the nodes of one decoder."""

    def __init__(self, backbone: Backbone, name: str, state: _State) -> None:
        self._backbone, self._name, self._state = backbone, name, state
        self._write = backbone.write

    def skip(self, level: int, layer: int) -> ir.Value:
        """One level's tokens as an image of 256 channels, at 4, 2, 1 or ½ times the grid."""
        image = self._rescaled(level, self._readout(level, layer))
        return self._conv(image, f"convs.{level}.conv")

    def fuse(self, index: int, values: ir.Value, skip: ir.Value | None) -> ir.Value:
        """Add a finer level, and double the size."""
        name = f"fusion_blocks.{index}"
        if skip is not None:
            # Always: on even grids it is the identity, and an odd grid needs it.
            fitted = self._resize(skip, self._sides(values, name), name)
            unit = self._unit(fitted, f"{name}.res_conv_unit1")
            values = self._add(values, unit, f"{name}/skipped")
        values = self._unit(values, f"{name}.res_conv_unit2")
        # Before the resize, at a quarter of the pixels: step 1 of the algebra.
        projected = self._conv(values, f"{name}.project.conv")
        return self._double(projected, name)

    def head(self, values: ir.Value) -> ir.Value:
        """Images of 256 channels to depth before its ReLU, [B, 1, H, W]."""
        values = self._relu(self._conv(values, "project.conv"), "project")
        values = self._conv(values, "conv_depth.head.0")
        values = self._double(values, "conv_depth.head.1")
        values = self._relu(self._conv(values, "conv_depth.head.2"), "conv_depth.head.3")
        return self._conv(values, "conv_depth.head.4")

    def side(self, values: ir.Value, axis: int, name: str) -> ir.Value:
        """The length of one axis, int64 [1]."""
        return self._write(
            "Shape", values, name=f"{name}/side_{axis}", dtype=_INT64, start=axis, end=axis + 1
        )

    def _readout(self, level: int, layer: int) -> ir.Value:
        """Tokens [B, h·w, C] of a level, with the class token mixed in: step 2 of the algebra."""
        write, name = self._write, f"{self._name}.level_{level}"
        key = f"reassemble_blocks.readout_projects.{level}.0"
        ((of_patches, of_cls),) = split_levels(self._state[f"{key}.weight"], 1)
        stream = self._backbone.stream(layer)
        patches = self._backbone.patches(
            write("MatMul", stream, of_patches, name=f"{name}/product"), name
        )
        cls_token = self._backbone.cls_token(stream, name)
        constant = write(
            "Add",
            write("MatMul", cls_token, of_cls, name=f"{name}/cls_product"),
            self._state[f"{key}.bias"],
            name=f"{name}/constant",
        )
        row = write("Unsqueeze", constant, np.array([1]), name=f"{name}/constant_row")
        mixed = write("Gelu", write("Add", patches, row, name=f"{name}/mixed"), name=f"{name}/gelu")
        key = f"reassemble_blocks.projects.{level}.conv"
        weight = self._state[f"{key}.weight"]
        return self._affine(mixed, weight.reshape(len(weight), -1).T, f"{key}.bias", f"{name}/out")

    def _rescaled(self, level: int, tokens: ir.Value) -> ir.Value:
        """Tokens [B, h·w, C] to an image at the level's size."""
        key, name = f"reassemble_blocks.resize_layers.{level}", f"{self._name}.rescale_{level}"
        if level > 1:
            image = self._image(tokens, name)
            return self._conv(image, key, strides=[2, 2]) if level == 3 else image
        weight, bias = shuffle_weight(self._state[f"{key}.weight"], self._state[f"{key}.bias"])
        product = self._write("MatMul", tokens, weight, name=f"{name}/product")
        biased = self._write("Add", product, bias, name=f"{name}/biased")
        return self._write(
            "DepthToSpace", self._image(biased, name), name=f"{name}/shuffled",
            blocksize=4 if level == 0 else 2, mode="CRD",
        )  # fmt: skip

    def _image(self, tokens: ir.Value, name: str) -> ir.Value:
        """[B, h·w, C] to [B, C, h, w]."""
        planes = self._write("Transpose", tokens, name=f"{name}/planes", perm=[0, 2, 1])
        zero, rest = np.array([0]), np.array([-1])
        shape = self._write(
            "Concat", zero, zero, self._backbone.grid.height, rest, name=f"{name}/shape",
            dtype=_INT64, axis=0,
        )  # fmt: skip
        return self._write("Reshape", planes, shape, name=f"{name}/image")

    def _unit(self, values: ir.Value, key: str) -> ir.Value:
        inner = self._conv(self._relu(values, f"{key}.in"), f"{key}.conv1.conv")
        inner = self._conv(self._relu(inner, f"{key}.mid"), f"{key}.conv2.conv")
        return self._add(values, inner, f"{key}/out")

    def _conv(self, values: ir.Value, key: str, **attributes: Any) -> ir.Value:
        weight, bias = self._state[f"{key}.weight"], self._state.get(f"{key}.bias")
        border = weight.shape[-1] // 2
        return self._write(
            "Conv",
            values,
            *([weight] if bias is None else [weight, bias]),
            name=f"{self._name}.{key}/conv",
            pads=[border] * 4,
            kernel_shape=list(weight.shape[2:]),
            **attributes,
        )

    def _affine(self, values: ir.Value, weight: Array, bias: str, name: str) -> ir.Value:
        product = self._write("MatMul", values, weight, name=f"{name}_product")
        return self._write("Add", product, self._state[bias], name=name)

    def _add(self, values: ir.Value, other: ir.Value, name: str) -> ir.Value:
        return self._write("Add", values, other, name=f"{self._name}.{name}")

    def _relu(self, values: ir.Value, name: str) -> ir.Value:
        return self._write("Relu", values, name=f"{self._name}.{name}/relu")

    def _double(self, values: ir.Value, name: str) -> ir.Value:
        sides = self._backbone.times(
            self._sides(values, f"{name}.double"), 2, f"{self._name}.{name}.doubled"
        )
        return self._resize(values, sides, f"{name}.double", "align_corners")

    def _sides(self, values: ir.Value, name: str) -> Sides:
        return Sides(*(self.side(values, axis, f"{self._name}.{name}") for axis in (2, 3)))

    def _resize(
        self, values: ir.Value, size: Sides, name: str, coordinates: str = "half_pixel"
    ) -> ir.Value:
        """Bilinear, by size and not by factors, which older libraries read in other ways."""
        place = f"{self._name}.{name}"
        leading = self._write(
            "Shape", values, name=f"{place}/leading", dtype=_INT64, start=0, end=2
        )
        sizes = self._write(
            "Concat", leading, size.height, size.width, name=f"{place}/sizes", dtype=_INT64, axis=0
        )
        return self._write(
            "Resize", values, None, None, sizes, name=f"{place}/resized", mode="linear",
            coordinate_transformation_mode=coordinates,
        )  # fmt: skip
