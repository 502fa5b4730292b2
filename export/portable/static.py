"""Graphs of one batch and one image size, for engines that take no other."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer

from dinov2rt.bundle.entries import FileEntry, GraphEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import ExportError, InputError
from dinov2rt.export.frontend import PADDING_INPUT
from dinov2rt.export.surgery import bypass
from dinov2rt.foreign import quoted

_MOST_BYTES = 2**31
_SHAPE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class StaticShape:
    """Batch, height and width in pixels."""

    batch: int
    size: ImageSize

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shape written as BxHxW.

        Raises:
            InputError: anything else.
        """
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise InputError(
                f"static {quoted(text)}; allowed is BATCHxHEIGHTxWIDTH, such as 1x224x224"
            )
        batch, height, width = map(int, match.groups())
        return cls(batch, ImageSize(height, width))

    def __str__(self) -> str:
        return f"{self.batch}x{self.size}"

    def check(self, patch_size: int) -> None:
        """Refuse sides that are no multiples of the patch: such a graph would drop pixels.

        Raises:
            InputError: a side is not a multiple of the patch.
        """
        for side in (self.size.height, self.size.width):
            if side % patch_size:
                lower = side // patch_size * patch_size
                nearest = " and ".join(str(each) for each in (lower, lower + patch_size) if each)
                raise InputError(
                    f"static {self}: {side} is not a multiple of the patch, {patch_size}; nearest: "
                    f"{nearest}"
                )


def write_static_graphs(
    bundle: Path, graphs: tuple[GraphEntry, ...], shape: StaticShape | None, patch_size: int
) -> tuple[GraphEntry, ...]:
    """Write each of `graphs` of `bundle` once more for `shape`; none if there is no shape.

    They share their weights' files with the dynamic graphs.

    Raises:
        ExportError: it is not valid, or a dimension stayed dynamic.
    """
    if shape is None:
        return ()
    return tuple(_write_static_graph(bundle, graph, shape, patch_size) for graph in graphs)


def _write_static_graph(
    bundle: Path, graph: GraphEntry, shape: StaticShape, patch_size: int
) -> GraphEntry:
    source, *weights = graph.files
    model = ir.load(bundle / source.path)
    make_static(model, shape, patch_size)
    name = f"{graph.precision}-{shape}.onnx"
    ir.save(model, bundle / name)
    try:
        onnx.checker.check_model(str(bundle / name), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{name} is no valid ONNX: {error}") from error
    sides = (shape.batch, shape.size.height, shape.size.width)
    return replace(graph, files=(FileEntry.of(bundle, name), *weights), static=sides)


def make_static(model: ir.Model, shape: StaticShape, patch_size: int) -> None:
    """Give `model` the one input `shape`, in place, and compute all that follows from it.

    Positions become a constant, and so does every shape. The input `padding` goes.

    Raises:
        ExportError: a dimension stayed dynamic.
    """
    graph = model.graph
    images = graph.inputs[0]
    size = shape.size
    is_pixels = images.dtype == ir.DataType.UINT8
    sides = (size.height, size.width, 3) if is_pixels else (3, size.height, size.width)
    images.shape = ir.Shape([shape.batch, *sides])
    _drop_padding(graph)
    num_patches = (size.height // patch_size) * (size.width // patch_size)
    known = {"batch": shape.batch, "num_patches": num_patches}
    known |= {"height": size.height, "width": size.width}
    for output in graph.outputs:
        dims = output.shape or ir.Shape([])
        output.shape = ir.Shape([_fixed(dim, known) for dim in dims])
    optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=_MOST_BYTES,
        output_size_limit=_MOST_BYTES,
    )
    RemoveUnusedNodesPass()(model)
    dynamic = [out.name for out in graph.outputs if out.shape is None or not out.shape.is_static()]
    if dynamic:
        raise ExportError(f"outputs {', '.join(map(str, dynamic))} stayed dynamic with {shape}")


def _drop_padding(graph: ir.Graph) -> None:
    padding = graph.initializers.pop(PADDING_INPUT, None)
    if padding is None:
        return
    for pad in [use.node for use in padding.uses()]:
        if pad.inputs[0] is not None:
            bypass(graph, pad, pad.inputs[0])
    graph.inputs[:] = [value for value in graph.inputs if value is not padding]


def _fixed(dim: int | ir.SymbolicDim, known: dict[str, int]) -> int | ir.SymbolicDim:
    return dim if isinstance(dim, int) else known.get(str(dim), dim)
