"""Layers without the final norm, `x_prenorm` and attention maps, against the eager model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from support.placement import reads_of_host_buffers

from dinov2rt.bundle.limits import TaskLimits
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import Extras, InputFormat
from dinov2rt.bundle.variants import Variant, find_variant
from dinov2rt.errors import InputError
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.folding import fold, split_qkv
from dinov2rt.export.golden import eager_outputs
from dinov2rt.export.graph import ExportGraph
from dinov2rt.export.heads.taps import attach_attention
from dinov2rt.export.model import load_eager
from dinov2rt.export.trace import trace
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.backends.openvino import cannot_run_int8
from dinov2rt.runtime.model import load
from dinov2rt.runtime.verification import verify_cuda_graph_on_cpu

EXTRAS = Extras((0, 1), unnormed=True, x_prenorm=True, attention=True)
SHAPES = [(1, 14, 14), (3, 28, 14), (2, 73, 107)]


def run(model: ir.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images}), strict=True))


@pytest.mark.parametrize(
    ("name", "is_folded"), [("dinov2_vits14", False), ("dinov2_vitg14_reg", True)]
)
def test_taps_are_the_eager_models_at_every_shape(
    name: str, is_folded: bool, toy_variant: Callable[[str], Variant]
) -> None:
    variant = toy_variant(name)
    state = synthetic_state_dict(variant, 0)
    eager, model = load_eager(variant, state), trace(ExportGraph(variant, state, EXTRAS).eval())
    if is_folded:
        fold(model, variant)
    attach_attention(model, variant)
    if is_folded:
        split_qkv(model)
    rng = np.random.default_rng(0)
    for batch, height, width in SHAPES:
        images = rng.standard_normal((batch, 3, height, width), dtype=np.float32)
        want = eager_outputs(eager, torch.from_numpy(images), EXTRAS)
        got = run(model, images)
        assert list(got) == list(want)
        for output, value in got.items():
            assert value.shape == want[output].shape
            error = np.linalg.norm(value - want[output]) / np.linalg.norm(want[output])
            assert error < 1e-5, (output, height, width)


def test_the_eager_attention_is_that_of_the_attention_itself(
    toy_variant: Callable[[str], Variant],
) -> None:
    """Values that are unit vectors make of an attention its own weights."""
    variant = toy_variant("dinov2_vits14_reg")
    eager = load_eager(variant, synthetic_state_dict(variant, 0))
    attention = eager.blocks[-1].attn
    tokens = torch.randn(2, 9, variant.embed_dim, generator=torch.Generator().manual_seed(0))
    qkv = attention.qkv(tokens).reshape(2, 9, 3, variant.num_heads, variant.head_dim)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    unit = torch.eye(9).expand(2, variant.num_heads, 9, 9)
    want = torch.nn.functional.scaled_dot_product_attention(query, key, unit)[:, :, 0]
    torch.testing.assert_close(attention.cls_weights(tokens), want)


def test_a_bundle_with_taps_is_verified_in_every_form(
    toy_variant: Callable[[str], Variant], tmp_path: Path
) -> None:
    variant, bundle = toy_variant("dinov2_vits14_reg"), tmp_path / "toy"
    options = ExportOptions(
        InputFormat.PIXELS, (0, 1), unnormed=True, x_prenorm=True, attention=True
    )
    manifest = export_bundle(variant, "synthetic:0", bundle, options)
    assert verify_cuda_graph_on_cpu(bundle, manifest)
    assert manifest.cuda_graph is not None
    assert reads_of_host_buffers(ir.load(bundle / manifest.cuda_graph.files[0].path)) == []
    for backend, precision in (
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("openvino", "fp32"),
    ):
        with load(bundle, device="cpu", backend=backend, precision=precision) as model:
            report = model.verify()
            assert report, report
            assert {task.output for task in report.tasks} == {"attention"}
            features = model(np.full((2, 42, 30, 3), 99, np.uint8))
    assert Manifest.read(bundle) == manifest
    command = manifest.rebuild_command(bundle)
    assert "--layers 0,1 --unnormed --x-prenorm --attention" in command
    assert features.attention.shape == (2, 2, 3, 2)
    assert features.x_prenorm.shape == (2, 1 + 4 + 6, 128)
    assert features.layer(1).patch_tokens.shape == (2, 3, 2, 128)
    # The last block's tokens are those of x_prenorm, which the final norm has not touched.
    np.testing.assert_array_equal(features.layer(1).cls_token, features.x_prenorm[:, 0])
    assert np.all(features.attention.sum((2, 3)) < 1)
    fp32 = next(graph for graph in manifest.graphs if graph.precision is Precision.FP32)
    assert fp32.extras == Extras((0, 1), True, True, True)
    assert fp32.task_limits["attention"] == TaskLimits(pooled_l2=pytest.approx(4e-5))


def test_a_false_attention_map_fails(toy_variant: Callable[[str], Variant], tmp_path: Path) -> None:
    variant, bundle = toy_variant("dinov2_vits14"), tmp_path / "toy"
    options = ExportOptions(precisions=(Precision.FP32,), attention=True)
    export_bundle(variant, "synthetic:0", bundle, options)
    with load(bundle, device="cpu") as model:
        (case, *_) = golden_cases_of(bundle)
        case.outputs["attention"][:] *= 1 + 1e-4  # type: ignore[index]
        report = model.verify([case])
    assert not report
    assert "attention at all: relative L2" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_attention_of_real_widths_holds_its_limits(name: str, tmp_path: Path) -> None:
    """Its error is several times that of tokens, which once failed correct graphs."""
    bundle, is_int8 = tmp_path / "bundle", cannot_run_int8() is None
    precisions = (Precision.FP32, *(Precision.INT8,) * is_int8)
    options = ExportOptions(precisions=precisions, attention=True)
    export_bundle(find_variant(name), "synthetic:0", bundle, options)
    runs = [("onnxruntime", "fp32"), ("openvino", "fp32"), *[("openvino", "int8")] * is_int8]
    for backend, precision in runs:
        with load(bundle, device="cpu", backend=backend, precision=precision) as model:
            report = model.verify()
        assert report, report
        (pooled,) = (task for task in report.tasks if task.case == "all")
        assert pooled.output == "attention"


def golden_cases_of(bundle: Path) -> tuple:
    from dinov2rt.bundle.golden import Golden

    return Golden.read(bundle / "golden.npz").cases


def test_unnormed_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="give layers, or x_prenorm"):
        ExportOptions(unnormed=True)
