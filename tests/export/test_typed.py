"""Typed graphs: half precision where the official regime has it, and nowhere else."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import dinov2rt
from dinov2rt.benchmarks.studies.precision_candidates import CHOSEN
from dinov2rt.benchmarks.studies.precision_study import study
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.normalization import normalize
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import NO_EXTRAS
from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import ExportError, InputError
from dinov2rt.export.exporter import ExportOptions
from dinov2rt.export.folding import fold_attention_scale
from dinov2rt.export.golden import eager_outputs, golden_pixels
from dinov2rt.export.model import load_eager
from dinov2rt.export.surgery import module_of
from dinov2rt.export.typed import half_outputs, to_half
from dinov2rt.export.weights.synthetic import synthetic_state_dict

HALF = {Precision.FP16: ir.DataType.FLOAT16, Precision.BF16: ir.DataType.BFLOAT16}


@pytest.fixture(scope="module", params=["dinov2_vits14_reg", "dinov2_vitg14"])
def variant(request: pytest.FixtureRequest, toy_variant: Callable[[str], Variant]) -> Variant:
    return toy_variant(request.param)


@pytest.fixture(scope="module")
def traced(toy_trace: Callable[[str], ir.Model], variant: Variant) -> ir.Model:
    model = toy_trace(variant.name).clone()
    fold_attention_scale(model, variant)
    return model


@pytest.fixture(scope="module", params=HALF)
def typed(request: pytest.FixtureRequest, traced: ir.Model) -> tuple[ir.Model, ir.DataType]:
    model = traced.clone()
    to_half(model, request.param)
    return model, HALF[request.param]


def types_of(model: ir.Model, op_type: str) -> Counter[ir.DataType | None]:
    """The types that the operators of one kind compute in, position table left out."""
    return Counter(
        value.dtype
        for node in model.graph
        if node.op_type == op_type and module_of(node) != "position"
        for value in node.inputs
        if value is not None and value.dtype != ir.DataType.INT64
    )


def test_products_attention_and_activation_are_half(
    typed: tuple[ir.Model, ir.DataType], variant: Variant
) -> None:
    model, half = typed
    assert types_of(model, "MatMul") == {half: 2 * 4 * variant.depth}
    assert types_of(model, "Attention") == {half: 3 * variant.depth}
    assert types_of(model, "Conv") == {half: 3}
    for activation in ("Gelu", "Sigmoid"):
        assert set(types_of(model, activation)) <= {half}


def test_residual_stream_norms_and_position_table_are_float32(
    typed: tuple[ir.Model, ir.DataType], variant: Variant
) -> None:
    model, half = typed
    assert set(types_of(model, "LayerNormalization")) == {ir.DataType.FLOAT}
    for node in model.graph:
        module = module_of(node)
        in_stream = node.op_type == "Add" and module.rpartition(".")[2].isdigit()
        if module.endswith((".ls1", ".ls2")) or in_stream:
            assert half not in {value.dtype for value in node.inputs if value}, node.name
        if module == "position" and node.op_type in ("MatMul", "Mul", "Sub", "Div", "Relu"):
            assert half not in {value.dtype for value in node.inputs if value}, node.name
    gammas = [name for name in model.graph.initializers if name.endswith(".gamma")]
    assert len(gammas) == 2 * variant.depth
    assert {output.dtype for output in model.graph.outputs} == {ir.DataType.FLOAT}


def test_declared_types_are_those_that_onnx_infers(
    typed: tuple[ir.Model, ir.DataType], tmp_path: Path
) -> None:
    model, _ = typed
    ir.save(model, tmp_path / "typed.onnx")
    onnx.checker.check_model(str(tmp_path / "typed.onnx"), full_check=True)


def test_one_attention_a_block_and_two_casts_a_branch(
    typed: tuple[ir.Model, ir.DataType], variant: Variant
) -> None:
    model, _ = typed
    assert sum(node.op_type == "Attention" for node in model.graph) == variant.depth
    casts = [node for node in model.graph if node.op_type == "Cast" and "blocks" in module_of(node)]
    assert len(casts) == 4 * variant.depth


def test_node_names_are_unique_and_the_same_each_time(traced: ir.Model) -> None:
    names = []
    for _ in range(2):
        model = traced.clone()
        to_half(model, Precision.FP16)
        names.append([node.name for node in model.graph])
    assert len(set(names[0])) == len(names[0])
    assert names[0] == names[1]


def test_the_trace_stays_as_it_was(traced: ir.Model) -> None:
    before = ir.to_proto(traced).SerializeToString()
    for precision in HALF:
        model = traced.clone()
        to_half(model, precision)
        half_outputs(model, precision)
    assert ir.to_proto(traced).SerializeToString() == before


def test_half_outputs_keep_names_and_shapes(traced: ir.Model) -> None:
    model = traced.clone()
    to_half(model, Precision.FP16)
    wide = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    half_outputs(model, Precision.FP16)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    images = np.random.default_rng(0).standard_normal((2, 3, 42, 57), dtype=np.float32)
    for output, got, want in zip(
        wide.get_outputs(),
        session.run([output.name for output in wide.get_outputs()], {"images": images}),
        wide.run(None, {"images": images}),
        strict=True,
    ):
        assert got.dtype == np.float16, output.name
        assert np.array_equal(got, want.astype(np.float16)), output.name


@pytest.mark.parametrize(
    ("weight", "factor", "message"),
    [
        ("blocks.1.down.weight", 1e7, "blocks.1.down.weight reaches"),
        ("blocks.0.qkv.weight", 1e-6, "blocks.0.qkv.weight is too small for float16"),
        ("blocks.0.up.bias", 1e8, "blocks.0.up.bias reaches"),
    ],
)
def test_weights_that_do_not_fit_float16_are_refused(
    traced: ir.Model, weight: str, factor: float, message: str
) -> None:
    model = traced.clone()
    value = model.graph.initializers[weight]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=weight)
    with pytest.raises(ExportError, match=f'{message}.*leave "fp16" out of the precisions'):
        to_half(model.clone(), Precision.FP16)
    to_half(model, Precision.BF16)


def test_small_biases_and_zero_weights_are_fine(traced: ir.Model) -> None:
    model = traced.clone()
    for name, factor in (("blocks.0.qkv.bias", 1e-6), ("blocks.0.up.weight", 0)):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)
    to_half(model, Precision.FP16)


def test_bfloat16_weights_are_rounded_to_nearest(traced: ir.Model) -> None:
    model = traced.clone()
    to_half(model, Precision.BF16)
    exact = traced.graph.initializers["blocks.0.up.weight"].const_value
    rounded = model.graph.initializers["blocks.0.up.weight"].const_value
    assert exact is not None
    assert rounded is not None
    expected = torch.from_numpy(exact.numpy()).bfloat16().float().numpy()
    assert rounded.numpy().dtype == ml_dtypes.bfloat16
    assert np.array_equal(rounded.numpy().astype(np.float32), expected)


@pytest.mark.parametrize("precisions", [(), (Precision.FP16, Precision.FP16)])
def test_precisions_are_asked_for_once(precisions: tuple[Precision, ...]) -> None:
    with pytest.raises(InputError, match="give one or more of fp32, fp16, bf16, int8, each once"):
        ExportOptions(precisions=precisions)


def test_fp16_bundle_verifies_on_the_cpu(bundle_s_reg: Path) -> None:
    with dinov2rt.load(bundle_s_reg, precision="fp16", device="cpu") as model:
        report = model.verify()
        assert report, report
        assert {output.case for output in report.outputs} >= {"224x224", "231x345", "518x518"}


def test_fp16_error_is_at_most_that_of_autocast(bundle_s_reg: Path) -> None:
    pixels = golden_pixels(ImageSize(224, 224), ("astronaut.jpg", "coffee.jpg"))
    with dinov2rt.load(bundle_s_reg, precision="fp16", device="cpu") as model:
        got = model(pixels)
        eager = load_eager(model.architecture, synthetic_state_dict(model.architecture, 0))
    images = torch.from_numpy(normalize(pixels))
    want = eager_outputs(eager, images, NO_EXTRAS)
    with torch.autocast("cpu", dtype=torch.float16):
        official = eager_outputs(eager, images, NO_EXTRAS)
    for name, reference in want.items():
        error = np.linalg.norm(got.outputs[name] - reference)
        assert error <= 1.25 * np.linalg.norm(official[name] - reference), name
        assert error <= 1.2e-3 * np.linalg.norm(reference), name


@pytest.mark.slow
@pytest.mark.parametrize("variant", dinov2rt.variants(), ids=lambda variant: variant.name)
def test_fp16_error_of_every_variant_is_at_most_that_of_autocast(variant: Variant) -> None:
    state = synthetic_state_dict(variant, 0)
    autocast, chosen = study(variant, state, [224], Precision.FP16, [CHOSEN])
    assert chosen.patch_l2 <= 1.25 * autocast.patch_l2, (autocast, chosen)
    assert chosen.worst_l2 <= 1.25 * autocast.worst_l2, (autocast, chosen)
    assert 1 - chosen.cosine_min <= 4 * (1 - autocast.cosine_min), (autocast, chosen)
