"""TensorRT for RTX, and graphs with deliberate faults."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from dinov2rt.bundle.entries import FileEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.engines.builder_log import make_logger

EditGraph = Callable[[ir.Graph], None]


@pytest.fixture
def edited(bundle_s_reg: Path, copy_of: Callable[[Path], Path]) -> Callable[[EditGraph], Path]:
    """A copy of the bundle of S with an edited fp16 graph and updated hashes."""

    def edit(change: EditGraph) -> Path:
        bundle = copy_of(bundle_s_reg)
        file = bundle / "fp16.onnx"
        model = ir.load(file)
        change(model.graph)
        ir.external_data.load_to_model(model)
        ir.save(model, file, external_data="fp16.onnx.data")
        manifest = Manifest.read(bundle)
        graphs = tuple(
            dataclasses.replace(
                graph, files=tuple(FileEntry.of(bundle, entry.path) for entry in graph.files)
            )
            for graph in manifest.graphs
        )
        dataclasses.replace(manifest, graphs=graphs).write(bundle)
        return bundle

    return edit


@pytest.fixture(scope="session")
def parse(trt: Any) -> Callable[[Path], tuple[Any, Any]]:
    """Parses an ONNX file: the network, and the objects that must outlive it."""

    def parse(file: Path) -> tuple[Any, Any]:
        log = make_logger(trt)
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        assert parser.parse_from_file(str(file)), log.errors
        return network, (builder, parser, log)

    return parse


def compute_attention_in_float(graph: ir.Graph, *blocks: int) -> None:
    """Wrap the attention of `blocks` in casts to float32 and back."""
    names = tuple(f"blocks.{block}/" for block in blocks)
    for node in [node for node in graph if node.op_type == "Attention"]:
        if (node.name or "").startswith(names):
            _wrap_in_float(graph, node)


def _wrap_in_float(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs[:3]):
        assert value is not None
        cast = _cast(value, ir.DataType.FLOAT, f"{node.name}_in{index}")
        graph.insert_before(node, cast)
        node.replace_input_with(index, cast.outputs[0])
    (output,) = node.outputs
    output.dtype = ir.DataType.FLOAT
    back = _cast(output, ir.DataType.FLOAT16, f"{node.name}_out")
    ir.convenience.replace_all_uses_with(output, back.outputs[0])
    back.replace_input_with(0, output)
    graph.insert_after(node, back)


def _cast(value: ir.Value, data_type: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": data_type}, name=name)
    cast.outputs[0].name, cast.outputs[0].dtype = name, data_type
    return cast


@pytest.fixture(scope="session")
def float_attention() -> Callable[..., EditGraph]:
    """An edit that computes the attention of some blocks in float32."""
    return lambda *blocks: lambda graph: compute_attention_in_float(graph, *blocks)
