"""From the folded module to an ONNX model in memory, dynamic in batch, height and width."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch

from dinov2rt.export.graph import ExportGraph
from dinov2rt.runtime.errors import ExportError
from dinov2rt.runtime.features import output_names

OPSET = 23
"""The first with `Attention`, one node a block; chosen by measurement, see docs/adr/0004."""

# Neither square nor a multiple of 14, over one patch a side: an example that satisfies an accident
# (H == W, one column, a whole number of patches) can be specialised to it without a word.
_EXAMPLE_SHAPE = (2, 3, 73, 107)
_MODULE = re.compile(r"(?<=')(?:blocks|position|norm)[\w.]*")
_INPUT_SHAPE = ("batch", 3, "height", "width")


def trace(graph: ExportGraph, opset: int = OPSET) -> ir.Model:
    """The graph as an ONNX model: `images` [batch, 3, height, width] to the named outputs.

    Raises:
        ExportError: a dimension that must be dynamic came out as a constant.
    """
    outputs = output_names(graph.variant, graph.layers)
    with _quiet():
        program = torch.onnx.export(
            graph,
            (torch.zeros(_EXAMPLE_SHAPE),),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=list(outputs),
            dynamic_shapes={"images": {0: "batch", 2: "height", 3: "width"}},
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned nothing; is torch >= 2.9 installed?")
    model = program.model
    name_dimensions(model)
    _name_nodes(model)
    _drop_trace_leftovers(model)
    return model


def name_dimensions(model: ir.Model) -> None:
    """Assert that what must be dynamic is, and give `h·w` a readable name."""
    (images,) = model.graph.inputs
    found = tuple(dim if isinstance(dim, int) else dim.value for dim in images.shape or ())
    if found != _INPUT_SHAPE:
        raise ExportError(f"input was exported as {found}, must be {_INPUT_SHAPE}")
    for output in model.graph.outputs:
        shape = output.shape
        if shape is None or not isinstance(shape[-1], int):
            raise ExportError(f"output {output.name} has no static width: {shape}")
        patches = output.name is not None and output.name.endswith("patch_tokens")
        if isinstance(shape[0], int) or (patches and isinstance(shape[1], int)):
            raise ExportError(f"output {output.name} was exported with constant size {shape}")
        middle = [ir.SymbolicDim("num_patches")] if patches else list(shape[1:-1])
        output.shape = ir.Shape([ir.SymbolicDim("batch"), *middle, shape[-1]])


def _name_nodes(model: ir.Model) -> None:
    """Name each node after the module that it came from, e.g. `blocks.3.qkv/MatMul_57`."""
    module = "tokens"
    for index, node in enumerate(model.graph):
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        # A node that the exporter made without a scope belongs to the module of the one before it.
        module = (_MODULE.findall(scopes) or [module])[-1]
        node.name = f"{module}/{node.op_type}_{index}"


def _drop_trace_leftovers(model: ir.Model) -> None:
    """Remove source paths and stack traces, guessed inner shapes, attributes at their defaults."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    ends = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        if node.op_type == "Attention":  # TensorRT documents both as unsupported
            for attribute in ("softcap", "qk_matmul_output_mode", "is_causal"):
                node.attributes.pop(attribute, None)
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in ends:
                value.shape = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of torchvision and of its own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
