"""Taps of the backbone's graph for heads: tokens of any block, with or without the final norm."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.export.frontend import HEIGHT_NODE, WIDTH_NODE
from dinov2rt.export.heads.bilinear import Sides
from dinov2rt.export.model import LAYER_NORM_EPS
from dinov2rt.export.surgery import Writer, module_of, nodes_of

_INT64 = ir.DataType.INT64
_END = np.array([np.iinfo(np.int64).max])


class Backbone:
    """The places of a traced backbone that heads read. Nodes are written where they are asked for.

    Every normed layer is written once, however many heads read it.
    """

    def __init__(self, model: ir.Model, architecture: Architecture) -> None:
        self.write: Writer = Writer(model.graph)
        self.architecture = architecture
        self.patch_size: int = architecture.patch_size
        self._first_patch = architecture.num_prefix_tokens
        norms = {module_of(norm): norm for norm in nodes_of(model, "LayerNormalization")}
        after = [f"blocks.{index}.norm1" for index in range(1, architecture.depth)]
        self._norms = [norms[name] for name in (*after, "final.norm")]
        self._made: dict[str, ir.Value] = {}
        self._sizes: tuple[Sides, Sides] | None = None

    def stream(self, layer: int) -> ir.Value:
        """Tokens behind block `layer` without the final norm, [B, N, D]."""
        (tokens, *_) = self._norms[layer].inputs
        if tokens is None:
            raise ValueError(f"nothing behind block {layer}")
        return tokens

    def normed(self, layer: int) -> ir.Value:
        """Tokens behind block `layer` after the final norm, [B, N, D]."""
        if layer == self.architecture.depth - 1:
            return self._norms[-1].outputs[0]
        name = f"heads.norm_{layer}"
        return self._once(name, lambda: self._norm(self.stream(layer), name))

    def normed_cls_token(self, layer: int) -> ir.Value:
        """The class token behind block `layer` after the final norm, [B, D]."""
        name = f"heads.cls_norm_{layer}"
        if layer == self.architecture.depth - 1:
            return self._once(name, lambda: self.cls_token(self.normed(layer), name))
        return self._once(name, lambda: self._norm(self.cls_token(self.stream(layer), name), name))

    def cls_token(self, tokens: ir.Value, name: str) -> ir.Value:
        """The class token of `tokens` [B, N, C], [B, C]."""
        return self.write("Gather", tokens, np.array(0), name=f"{name}/cls", axis=1)

    def patches(self, tokens: ir.Value, name: str) -> ir.Value:
        """The patch tokens of `tokens` [B, N, C], [B, h·w, C]."""
        first = np.array([self._first_patch])
        return self.write("Slice", tokens, first, _END, np.array([1]), name=f"{name}/patches")

    @property
    def image(self) -> Sides:
        """The image's own size in pixels."""
        return self._read_sizes()[0]

    @property
    def grid(self) -> Sides:
        """Rows and columns of patches, of the image padded to whole ones."""
        return self._read_sizes()[1]

    def times(self, sides: Sides, factor: int, name: str) -> Sides:
        """`sides`, multiplied."""
        return Sides(
            *(
                self.write("Mul", side, np.array([factor]), name=f"{name}/{axis}", dtype=_INT64)
                for axis, side in (("height", sides.height), ("width", sides.width))
            )
        )

    def _read_sizes(self) -> tuple[Sides, Sides]:
        if self._sizes is None:
            images = self.write.graph.inputs[0]
            image = Sides(
                *(
                    self.write("Shape", images, name=name, dtype=_INT64, start=axis, end=axis + 1)
                    for name, axis in ((HEIGHT_NODE, 2), (WIDTH_NODE, 3))
                )
            )
            self._sizes = image, Sides(*(self._patch_count(side) for side in _both(image)))
        return self._sizes

    def _patch_count(self, side: ir.Value) -> ir.Value:
        up = self.write(
            "Add", side, np.array([self.patch_size - 1]), name=f"{side.name}_up", dtype=_INT64
        )
        return self.write(
            "Div", up, np.array([self.patch_size]), name=f"{side.name}_patches", dtype=_INT64
        )

    def _norm(self, tokens: ir.Value, name: str) -> ir.Value:
        weight, bias = (self.write.initializer(f"norm.{kind}") for kind in ("weight", "bias"))
        return self.write(
            "LayerNormalization",
            tokens,
            weight,
            bias,
            name=f"{name}/normed",
            axis=-1,
            epsilon=LAYER_NORM_EPS,
        )

    def _once(self, name: str, make: Callable[[], ir.Value]) -> ir.Value:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def _both(sides: Sides) -> tuple[ir.Value, ir.Value]:
    return sides.height, sides.width
