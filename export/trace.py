"""Traces the module to an ONNX model in memory, dynamic in batch, height and width.

All blocks compute the same, so one is traced and repeated with each block's weights: tracing takes
seconds for every variant, where torch needs many minutes for the symbolic shapes of 40 blocks.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.signature import NO_EXTRAS, OPSET, X_PRENORM, Extras, output_names
from dinov2rt.errors import ExportError
from dinov2rt.export.graph import ExportGraph
from dinov2rt.export.heads.taps import split_tokens
from dinov2rt.export.position import CONSTANT_PARAMETERS
from dinov2rt.export.surgery import Writer
from dinov2rt.export.trace_cleanup import (
    copy_dimensions,
    drop_trace_leftovers,
    forget_inner_shapes,
    name_nodes,
)

_EXAMPLE_BATCH, _EXAMPLE_TOKENS = 2, 35
_INPUT_SHAPE = ("batch", 3, "height", "width")

Rename = Callable[[str], str]

_TRACED: dict[Hashable, ir.Model] = {}
"""The modules traced in this process, without weights, by structure and opset."""


def trace(graph: ExportGraph, opset: int = OPSET) -> ir.Model:
    """The graph as an ONNX model: `images` [batch, 3, height, width] to the named outputs.

    Raises:
        ExportError: a dimension that must be dynamic was exported as a constant.
    """
    embed_dim = graph.architecture.embed_dim
    tokens = torch.zeros(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, embed_dim)
    images = _example_images(graph.architecture.patch_size)
    of_images, of_tokens = {0: "batch", 2: "height", 3: "width"}, {0: "batch", 1: "num_tokens"}
    model = _export_once(graph.embedding, images, "images", of_images, opset)
    block = _export_once(graph.blocks[0], tokens, "tokens", of_tokens, opset)
    head = _export_once(graph.head, tokens, "tokens", of_tokens, opset)
    for traced, module in ((model, graph.embedding), (head, graph.head)):
        _set_weights(traced.graph, module)
    copy_dimensions(block.graph)
    _join(model.graph, graph, block.graph, head.graph)
    RemoveUnusedNodesPass()(model)
    name_dimensions(model, graph.architecture, graph.extras)
    forget_inner_shapes(model.graph)
    return model


def _example_images(patch_size: int) -> torch.Tensor:
    """Example images: neither square nor a whole number of patches, and more than one patch a side.

    If the example had a special property (H == W, one column, a multiple of the patch), torch could
    silently specialize the graph to it.
    """
    height, width = 5 * patch_size + patch_size // 3, 7 * patch_size + patch_size // 2
    return torch.zeros(_EXAMPLE_BATCH, 3, height, width)


def _export_once(
    module: nn.Module, example: torch.Tensor, name: str, dynamic: dict[int, str], opset: int
) -> ir.Model:
    """The traced module without its weights.

    A process that exports several bundles traces each structure once, because tracing takes longer
    than all other work on a small model.
    """
    key = (_structure(module), opset)
    if key not in _TRACED:
        model = _export(module, example, name, dynamic, opset)
        for weight, _ in _weights(module):
            model.graph.initializers[weight].const_value = None
        _TRACED[key] = model
    return _TRACED[key].clone()


def _structure(module: nn.Module) -> Hashable:
    """A key of all a trace depends on: classes, their attributes, constants, shapes of weights."""
    inherited = vars(nn.Module()).keys()
    parts = tuple(
        (name, type(part), tuple((k, repr(v)) for k, v in vars(part).items() if k not in inherited))
        for name, part in module.named_modules()
    )
    weights = tuple((name, tuple(weight.shape)) for name, weight in _weights(module))
    constants = tuple(
        (name, tuple(value.shape), value.detach().numpy().tobytes())
        for name, value in module.named_parameters()
        if name.endswith(CONSTANT_PARAMETERS)
    )
    return parts, weights, constants


def _export(
    module: nn.Module, example: torch.Tensor, name: str, dynamic: dict[int, str], opset: int
) -> ir.Model:
    """Export one module, with readable node names and without metadata of the tracing.

    It is traced with random weights, because the exporter merges equal initializers and simplifies
    zeros and ones. Its own weights are set afterwards.
    """
    with _quiet():
        program = torch.onnx.export(
            _with_drawn_weights(module).eval(),
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[name],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned nothing; is torch >= 2.9 installed?")
    (shape,) = (value.shape for value in program.model.graph.inputs)
    for axis, dimension in dynamic.items():
        if shape is None or shape[axis] != dimension:
            raise ExportError(f"axis {axis} of {name} was exported as {shape}, not dynamic")
    name_nodes(program.model.graph, root="embedding" if name == "images" else "")
    drop_trace_leftovers(program.model)
    return program.model


def _join(target: ir.Graph, graph: ExportGraph, block: ir.Graph, head: ir.Graph) -> None:
    """Append every block with its own weights, and a head after each requested layer."""
    (tokens,) = target.outputs
    tokens.name = "tokens"
    target.outputs.clear()
    ends: list[ir.Value] = []
    for index, module in enumerate(graph.blocks):
        own = _with_weights(block, module)
        (tokens,) = _append(target, own, tokens, _below(f"blocks.{index}"))
        if index in graph.extras.layers:
            ends += _level(target, graph, head, tokens, f"layer_{index}")
    if graph.extras.x_prenorm:
        ends.append(Writer(target)("Identity", tokens, name="x_prenorm/tokens"))
    final = _append(target, head, tokens, _beside("final", graph.head))
    target.outputs.extend([*final, *ends])
    names = output_names(graph.architecture, replace(graph.extras, attention=False))
    for output, name in zip(target.outputs, names, strict=True):
        output.name = name
    target.sort()


def _level(
    target: ir.Graph, graph: ExportGraph, head: ir.Graph, tokens: ir.Value, name: str
) -> list[ir.Value]:
    """CLS and patch tokens of an intermediate block, after the final norm unless `unnormed`."""
    if graph.extras.unnormed:
        return list(split_tokens(Writer(target), tokens, graph.head.first_patch, name))
    level = _append(target, head, tokens, _beside(name, graph.head))
    return [level[0], level[-1]]


def _with_weights(block: ir.Graph, module: nn.Module) -> ir.Graph:
    """A copy of the traced block that holds the parameters of `module`."""
    own = block.clone()
    _set_weights(own, module)
    return own


def _with_drawn_weights(module: nn.Module) -> nn.Module:
    """A copy of `module` in which no two weights are equal, and none is zero or one."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: nn.Parameter(torch.randn(weight.shape, generator=generator), requires_grad=False)
        for name, weight in _weights(module)
    }
    memo: dict[int, Any] = {id(weight): weights[name] for name, weight in _weights(module)}
    return copy.deepcopy(module, memo)


def _set_weights(graph: ir.Graph, module: nn.Module) -> None:
    """Give the traced `graph` the weights of `module`."""
    for name, weight in _weights(module):
        graph.initializers[name].const_value = ir.tensor(weight.detach(), name=name)


def _weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a checkpoint decides, by name, without the constants of positions."""
    for name, parameter in module.named_parameters():
        if not name.endswith(CONSTANT_PARAMETERS):
            yield name, parameter


def _append(target: ir.Graph, part: ir.Graph, tokens: ir.Value, rename: Rename) -> list[ir.Value]:
    """Move a copy of `part` to the end of `target`, fed with `tokens`; return its outputs."""
    own = part.clone()
    (own_input,) = own.inputs
    outputs = list(own.outputs)
    own.outputs.clear()
    ir.convenience.replace_all_uses_with(own_input, tokens)
    for value in list(own.initializers.values()):
        _adopt(target, own, value, rename)
    nodes = list(own)
    own.remove(nodes)
    for node in nodes:
        node.name = rename(str(node.name))
        for value in node.outputs:
            value.name = rename(str(value.name))
    target.extend(nodes)
    return outputs


def _adopt(target: ir.Graph, source: ir.Graph, value: ir.Value, rename: Rename) -> None:
    """Move an initializer; if the target has one of the same name, that is used instead."""
    del source.initializers[str(value.name)]
    name = rename(str(value.name))
    if name in target.initializers:
        ir.convenience.replace_all_uses_with(value, target.initializers[name])
        return
    value.name = name
    target.initializers.add(value)


def _below(prefix: str) -> Rename:
    """`qkv/MatMul_3` to `blocks.5.qkv/MatMul_3`, `/Add_7` to `blocks.5/Add_7`."""
    return lambda name: f"{prefix}{name}" if name.startswith("/") else f"{prefix}.{name}"


def _beside(prefix: str, head: nn.Module) -> Rename:
    """The head's weights keep their names and are shared; all else is told apart by `prefix`."""
    weights = {name for name, _ in head.named_parameters()}
    below = _below(prefix)
    return lambda name: name if name in weights else below(name)


def name_dimensions(
    model: ir.Model, architecture: Architecture, extras: Extras = NO_EXTRAS
) -> None:
    """Check that the right dimensions are dynamic, and give every dimension a readable name."""
    (images,) = model.graph.inputs
    found = tuple(dim if isinstance(dim, int) else dim.value for dim in images.shape or ())
    if found != _INPUT_SHAPE:
        raise ExportError(f"input was exported as {found}, must be {_INPUT_SHAPE}")
    for output in model.graph.outputs:
        shape, name = output.shape, str(output.name)
        of_patches = name.endswith("patch_tokens")
        is_tap = name == X_PRENORM or (extras.unnormed and name.startswith("layer_"))
        is_static = shape is None or any(isinstance(dim, int) for dim in shape[: 1 + of_patches])
        if is_static and not is_tap:  # nothing of a tap is known but what it was made of
            raise ExportError(f"output {name} was exported as {shape}, which is not dynamic")
        output.shape = ir.Shape(["batch", *_token_axis(name, architecture), architecture.embed_dim])


def _token_axis(name: str, architecture: Architecture) -> tuple[str | int, ...]:
    """The axis of an output that counts tokens; a CLS token's has none."""
    if name == "register_tokens":
        return (architecture.num_registers,)
    if name == X_PRENORM:
        return ("num_tokens",)
    return ("num_patches",) if name.endswith("patch_tokens") else ()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: torchvision, its own deprecations, what onnxscript 0.6 prints."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
