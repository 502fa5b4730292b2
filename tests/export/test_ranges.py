"""The range audit: complete, right, gone afterwards, and loud where float16 ends."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import Variant, name_of
from dinov2rt.errors import ExportError
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.ranges import Ranges, record_ranges, worst
from dinov2rt.export.surgery import module_of
from dinov2rt.export.weights.synthetic import synthetic_state_dict

IMAGES = np.random.default_rng(1).standard_normal((2, 3, 42, 57), dtype=np.float32)
FLOAT32_NOISE = 1e-5


@pytest.fixture(scope="module", params=["dinov2_vits14_reg", "dinov2_vitg14"])
def model(request: pytest.FixtureRequest, toy_variant: Callable[[str], Variant]) -> Dinov2:
    variant = toy_variant(request.param)
    return load_eager(variant, synthetic_state_dict(variant, 0))


@pytest.fixture(scope="module")
def ranges(model: Dinov2) -> Ranges:
    with record_ranges(model) as ranges, torch.inference_mode():
        model.forward_features(torch.from_numpy(IMAGES))
    return ranges


def graph_values(traced: ir.Model) -> dict[str, float]:
    """The largest |value| of every float node of the traced graph, by module and operator."""
    names = {}
    for node in list(traced.graph):
        value = node.outputs[0]
        if value.dtype == ir.DataType.FLOAT and value not in traced.graph.outputs:
            traced.graph.outputs.append(value)
        if value.dtype == ir.DataType.FLOAT and value.name is not None:
            names[value.name] = f"{module_of(node)}/{node.op_type}"
    session = ort.InferenceSession(ir.to_proto(traced).SerializeToString())
    wanted = [output.name for output in session.get_outputs()]
    largest: dict[str, float] = {}
    for name, value in zip(wanted, session.run(wanted, {"images": IMAGES}), strict=True):
        key = names[name]
        largest[key] = max(largest.get(key, 0.0), float(np.abs(value).max()))
    return largest


def test_every_place_is_what_the_graph_computes_there(
    model: Dinov2, ranges: Ranges, toy_trace: Callable[[str], ir.Model]
) -> None:
    found = graph_values(toy_trace(name_of(model.architecture)).clone())
    activation = "Gelu" if model.architecture.ffn == "mlp" else "Mul"
    for index in range(model.architecture.depth):
        block = f"blocks.{index}"
        expected = {
            "norm1": found[f"{block}.norm1/LayerNormalization"],
            "qkv": max(found[f"{block}.qkv/MatMul"], found[f"{block}.qkv/Add"]),
            "attention": found[f"{block}/Attention"],
            "proj": found[f"{block}.proj/MatMul"],
            "norm2": found[f"{block}.norm2/LayerNormalization"],
            "up": max(found[f"{block}.up/MatMul"], found[f"{block}.up/Add"]),
            "activation": found[f"{block}/{activation}"],
            "down": found[f"{block}.down/MatMul"],
        }
        for name, value in expected.items():
            assert ranges[f"{block}.{name}"] == pytest.approx(value, rel=FLOAT32_NOISE, abs=1e-5)
    assert len(ranges) == 2 + 9 * model.architecture.depth


def test_massive_activations_are_seen_where_they_are(model: Dinov2, ranges: Ranges) -> None:
    source = model.architecture.depth // 3
    assert ranges[f"blocks.{source}.residual"] > 290
    assert ranges[f"blocks.{source}.down"] < 290  # they come from the bias, which stays float32


def test_hooks_are_gone_afterwards(model: Dinov2, ranges: Ranges) -> None:
    before = dict(ranges)
    with torch.inference_mode():
        model.forward_features(10 * torch.from_numpy(IMAGES))
    assert ranges == before


@pytest.mark.parametrize("value", [65505.0, float("inf"), float("nan")])
def test_overflow_is_an_error_that_names_the_tensor(value: float) -> None:
    ranges = {"patch_embed": 3.0, "blocks.7.up": value, "blocks.7.residual": 1e6}
    message = re.escape(f"blocks.7.up reaches {value:.4g}, float16 ends at 65504; leave")
    with pytest.raises(ExportError, match=message):
        worst(ranges)


def test_the_residual_stream_is_float32_and_may_be_larger() -> None:
    ranges = {"patch_embed": 3.0, "blocks.7.up": 65504.0, "blocks.7.residual": 1e6}
    assert worst(ranges) == ("blocks.7.up", 65504.0)


def test_the_manifest_holds_the_ranges_of_the_fp16_graph(bundle_s_reg: Path) -> None:
    manifest = Manifest.read(bundle_s_reg)
    ranges = {graph.precision: graph.ranges for graph in manifest.graphs}
    assert len(ranges[Precision.FP16]) == 2 + 9 * manifest.architecture.depth
    assert ranges[Precision.FP32] == {}
    assert 290 < max(ranges[Precision.FP16].values()) < 65504
