"""Int8 graphs: what is quantised, how far off that is, and what the search leaves in float32."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.limits import INT8_LIMITS
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import NO_EXTRAS, InputFormat
from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import ExportError
from dinov2rt.export.folding import fold
from dinov2rt.export.golden import eager_case, golden_pixels
from dinov2rt.export.int8.activations import Activations, Steps, rounded_in_groups
from dinov2rt.export.int8.calibration import Calibration
from dinov2rt.export.int8.form import Form, make_form
from dinov2rt.export.int8.gptq import Int8Product, Int8Weight, round_product, to_nearest
from dinov2rt.export.int8.graph import product_weights, to_int8
from dinov2rt.export.int8.measurement import Crops, running
from dinov2rt.export.int8.products import product_names
from dinov2rt.export.int8.search import Evidence, least_count, search
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.surgery import Writer, add_initializer
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.backends.openvino import OpenVinoBackend, cannot_run_int8
from dinov2rt.runtime.backends.openvino_int8 import fastest_rest, rounds_dynamically
from dinov2rt.runtime.backends.openvino_program import INT8_GROUP

FormOf = Callable[[Activations], Form]


@pytest.fixture(scope="module", params=["dinov2_vits14_reg", "dinov2_vitg14"])
def variant(request: pytest.FixtureRequest, toy_variant: Callable[[str], Variant]) -> Variant:
    return toy_variant(request.param)


@pytest.fixture(scope="module")
def folded(toy_trace: Callable[[str], ir.Model], variant: Variant) -> ir.Model:
    model = toy_trace(variant.name).clone()
    fold(model, variant)
    return model


@pytest.fixture(scope="module")
def photos() -> Calibration:
    return Calibration.load()


@pytest.fixture(scope="module")
def eager(variant: Variant) -> Dinov2:
    return load_eager(variant, synthetic_state_dict(variant, 0))


@pytest.fixture(scope="module")
def evidence(eager: Dinov2, photos: Calibration) -> Evidence:
    pixels = golden_pixels(ImageSize(98, 126), ("chelsea.jpg", "astronaut.jpg"))
    case = eager_case(eager, "98x126", pixels, InputFormat.IMAGES, NO_EXTRAS)
    crops = Crops((case,), case)  # of two, each is the other's nearest, whatever is done to them
    return Evidence(photos, crops, crops, drawings=(case,))


@pytest.fixture(scope="module")
def form_of(folded: ir.Model, eager: Dinov2, photos: Calibration) -> FormOf:
    def make(activations: Activations) -> Form:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dinov2rt.export.int8.form.RANGED_ON", range(20, 26))
            return make_form(folded, eager, photos, activations)

    return functools.cache(make)


@pytest.fixture(scope="module", params=list(Activations))
def form(form_of: FormOf, request: pytest.FixtureRequest) -> Form:
    return form_of(request.param)


def outputs(model: ir.Model, case: GoldenCase, folder: Path) -> dict[str, np.ndarray]:
    ir.save(model, folder / "graph.onnx", external_data="graph.onnx.data")
    backend = OpenVinoBackend(folder / "graph.onnx", threads=1)
    return backend.infer({"images": case.images}, list(case.outputs))


def test_with_all_products_in_float32_it_is_exact(
    folded: ir.Model, variant: Variant, evidence: Evidence, tmp_path: Path
) -> None:
    model = folded.clone()
    to_int8(model, {}, product_names(variant))
    (case,) = evidence.searched_on.cases
    for name, got in outputs(model, case, tmp_path).items():
        want = case.reference(name)
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want), name


def test_products_are_int8_but_those_named(folded: ir.Model, form: Form, variant: Variant) -> None:
    assert tuple(product_weights(folded)) == product_names(variant)
    model = folded.clone()
    to_int8(model, form.rounded, ["blocks.1.down"])
    kinds = Counter(node.op_type for node in model.graph)
    count, is_static = 4 * variant.depth - 1, form.rounded["blocks.0.qkv"].steps is not None
    assert kinds["DequantizeLinear"] == count * (1 + is_static)
    assert kinds["QuantizeLinear"] == count * is_static
    names = model.graph.initializers
    assert "blocks.1.down.weight" in names
    assert names["blocks.0.qkv.weight_int8"].dtype == ir.DataType.INT8
    assert "blocks.0.qkv.weight" not in names
    assert "blocks.0.qkv.weight" in folded.graph.initializers


@pytest.mark.skipif(cannot_run_int8() is not None, reason="without VNNI products stay float32")
@pytest.mark.parametrize("width", [2 * INT8_GROUP, INT8_GROUP + 43, 3416, INT8_GROUP - 32])
def test_products_multiply_bytes_and_the_rank_knows_what_they_compute(
    tmp_path: Path, width: int
) -> None:
    """OpenVINO rounds activations as well, in the groups that are emulated: no float32 product."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn((2, 70, width), generator=generator)
    tokens[:, :, 3] *= 50  # an outlier, in one group alone
    linear = torch.nn.Linear(width, 384)
    weight, bias = to_nearest(linear.weight.detach().numpy().T), linear.bias.detach().numpy()
    got = run_product(tmp_path, tokens.numpy(), weight, bias)
    want = rounded_in_groups(tokens).numpy() @ (weight.integers * weight.scale) + bias
    exact = tokens.numpy() @ (weight.integers * weight.scale) + bias
    assert relative(got, want) < 1e-4  # a number halfway between two may be rounded to either
    assert (relative(got, exact) > 1e-3) is (width >= INT8_GROUP)


@pytest.mark.skipif(cannot_run_int8() is not None, reason="without VNNI products stay float32")
@pytest.mark.skipif(rounds_dynamically(), reason="needs AMX-BF16")
def test_with_amx_openvino_multiplies_dynamic_products_in_bf16(
    folded: ir.Model, form_of: FormOf, evidence: Evidence, tmp_path: Path
) -> None:
    """If a later OpenVINO multiplies bytes there, int8 may have dynamic activations: ADR 0009."""
    (case,) = evidence.searched_on.cases
    with running(form_of(Activations.DYNAMIC).build(folded, 0), tmp_path, Precision.BF16) as graph:
        graph.backend.infer({"images": case.images}, ["cls_token"])
        assert graph.backend._any_shape is not None
        compiled: Any = graph.backend._any_shape.request.get_compiled_model()
        nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = {(str(each["layerType"].value), str(each["primitiveType"].value)) for each in nodes}
    assert {kernel for layer, kernel in kinds if layer == "FullyConnected"} == {
        "brgemm_avx512_amx_bf16"
    }


def test_the_graph_rounds_static_activations_as_the_rank_does(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn((2, 70, 256), generator=generator) * torch.linspace(0.1, 3, 256)
    tokens[:, :, 3] += 40  # all of one channel is far from zero
    tokens[:, :, 5] = 0
    linear = torch.nn.Linear(256, 384)
    steps = Steps.of(tokens.flatten(0, 1))
    weight, bias = linear.weight.detach().numpy().T, linear.bias.detach().numpy()
    product = round_product(weight, tokens.flatten(0, 1), steps)
    got = run_product(tmp_path, tokens.numpy(), product.weight, bias, steps)
    own = (product.weight.integers * product.weight.scale) / steps.scale[:, None]
    assert relative(got, steps.rounded(tokens).numpy() @ own + bias) < 1e-5
    assert 1e-3 < relative(got, tokens.numpy() @ own + bias) < 2e-2
    assert relative(got, linear(tokens).detach().numpy()) < 2e-2


def run_product(
    folder: Path,
    tokens: np.ndarray,
    weight: Int8Weight,
    bias: np.ndarray,
    steps: Steps | None = None,
) -> np.ndarray:
    """`tokens @ weight + bias` as int8 graphs say it, in OpenVINO, or as written."""
    shape = ["batch", "tokens", tokens.shape[2]]
    given = ir.val("tokens", dtype=ir.DataType.FLOAT, shape=shape)
    graph = ir.Graph([given], [], nodes=[], opset_imports={"": 21}, name="product")
    write = Writer(graph)
    matrix = add_initializer(
        graph, "blocks.0.down.weight", np.zeros_like(weight.integers, np.float32)
    )
    product = write("MatMul", given, matrix, name="blocks.0.down/MatMul")
    graph.outputs.append(write("Add", product, bias, name="blocks.0.down/Add"))
    graph.outputs[0].shape = ir.Shape([*shape[:2], bias.size])
    model = ir.Model(graph, ir_version=10)
    to_int8(model, {"blocks.0.down": Int8Product(weight, steps)})
    ir.save(model, folder / "p.onnx")
    # OpenVINO takes static activations of a whole block alone, see the next test.
    if steps is not None:
        return as_written(folder / "p.onnx", {"tokens": tokens}, ["blocks.0.down/Add"])[
            "blocks.0.down/Add"
        ]
    backend = OpenVinoBackend(folder / "p.onnx", threads=1)
    return backend.infer({"tokens": tokens}, ["blocks.0.down/Add"])["blocks.0.down/Add"]


def as_written(
    file: Path, inputs: dict[str, np.ndarray], names: list[str]
) -> dict[str, np.ndarray]:
    """The outputs when each operator of the graph is computed alone.

    When ONNX Runtime fuses them, its int8 products saturate at 16 bits on CPUs without VNNI.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, inputs), strict=True))


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.skipif(cannot_run_int8() is not None, reason="without VNNI static products saturate")
def test_openvino_computes_what_the_graph_says(
    folded: ir.Model, form_of: FormOf, evidence: Evidence, tmp_path: Path
) -> None:
    """It was wrong where channels behind a norm had scales of their own: see `_folded`."""
    (case,) = evidence.searched_on.cases
    graph = form_of(Activations.STATIC).build(folded, 0)
    got = outputs(graph, case, tmp_path)
    written = as_written(tmp_path / "graph.onnx", {"images": case.images}, list(case.outputs))
    for name, want in written.items():
        off = relative(want, case.reference(name))
        assert relative(got[name], want) < 0.5 * off < 0.02, name


def test_every_product_is_ranked_once(variant: Variant, form: Form) -> None:
    assert sorted(form.ranked) == sorted(product_names(variant))


def test_the_search_says_what_stayed_float32_and_how_well_it_agrees(
    folded: ir.Model, form_of: FormOf, variant: Variant, evidence: Evidence, tmp_path: Path
) -> None:
    graph, entry = search(folded, form_of, evidence, tmp_path)
    kinds = Counter(node.op_type for node in graph.graph)
    int8 = set(product_names(variant)) - set(entry.float32)
    three = sum(name.endswith("qkv") for name in int8)  # as three products, see `split_qkv`
    of_activations = kinds["QuantizeLinear"]
    assert of_activations == len(entry.static)
    assert set(entry.static) <= int8
    assert kinds["DequantizeLinear"] - of_activations == len(int8) + 2 * three
    assert 0.999 <= entry.cls_cosine_min < 1
    assert 0.995 <= entry.token_cosine_p1 < 1
    assert entry.kept_nearest == 1
    assert entry.rest is fastest_rest()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rest", sorted({Precision.FP32, fastest_rest()}))
def test_with_bf16_nothing_is_dynamic(
    folded: ir.Model,
    form_of: FormOf,
    variant: Variant,
    evidence: Evidence,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rest: Precision,
) -> None:
    """Static activations may do no harm here, so one product at least is made another."""
    monkeypatch.setattr("dinov2rt.export.int8.search.fastest_rest", lambda: rest)
    monkeypatch.setattr("dinov2rt.export.int8.search.least_count", lambda *_: 1)
    _, entry = search(folded, form_of, evidence, tmp_path)
    others = set(product_names(variant)) - set(entry.static)
    assert others
    assert set(entry.float32) == (others if rest is Precision.BF16 else set())


def test_weights_that_int8_cannot_hold_are_refused(
    folded: ir.Model, form_of: FormOf, evidence: Evidence, tmp_path: Path
) -> None:
    (case,) = evidence.checked_on.cases
    other = {name: np.flip(value, -1) for name, value in case.outputs.items()}
    wrong = Crops((GoldenCase(case.name, case.images, other),), case)
    with pytest.raises(ExportError, match=r'int8 does not hold .* leave "int8" out'):
        search(folded, form_of, replace(evidence, searched_on=wrong, checked_on=wrong), tmp_path)


def crops_with_neighbours(case: GoldenCase, *angles: float) -> Crops:
    """One image, as often as there are `angles`.

    The reference says that its CLS tokens are turned by that many degrees from the true one.
    """
    true = case.outputs["cls_token"][0].astype(np.float64)
    aside = np.roll(true, 1)
    aside -= true * (aside @ true) / (true @ true)
    aside *= np.linalg.norm(true) / np.linalg.norm(aside)
    radians = np.deg2rad(angles)[:, None]
    cls_tokens = np.cos(radians) * true + np.sin(radians) * aside
    images = np.stack([case.images[0]] * len(angles))
    return Crops((case,), GoldenCase("gallery", images, {"cls_token": cls_tokens}))


def test_neighbours_that_do_not_stay_are_refused(
    folded: ir.Model, form_of: FormOf, evidence: Evidence, tmp_path: Path
) -> None:
    # each finds the first of the others, where the second and the third are the same
    crops = crops_with_neighbours(evidence.checked_on.cases[0], -2, 2, 2)
    with pytest.raises(ExportError, match=r"99% of nearest neighbours .* and 33\.3%"):
        search(folded, form_of, replace(evidence, searched_on=crops, checked_on=crops), tmp_path)


def test_a_neighbour_as_near_as_the_nearest_is_kept_but_not_the_same(
    folded: ir.Model, form_of: FormOf, evidence: Evidence, tmp_path: Path
) -> None:
    crops = crops_with_neighbours(evidence.checked_on.cases[0], -1.2, 0.3, 1.2)
    _, entry = search(
        folded, form_of, replace(evidence, searched_on=crops, checked_on=crops), tmp_path
    )
    assert (entry.same_nearest, entry.kept_nearest) == (pytest.approx(1 / 3), 1)


def test_cls_tokens_of_the_gallery_have_to_hold_the_limit(
    folded: ir.Model, form_of: FormOf, evidence: Evidence, tmp_path: Path
) -> None:
    crops = crops_with_neighbours(evidence.checked_on.cases[0], 3, 3, 3)  # 1 - cos is 1.4e-3
    with pytest.raises(ExportError, match=r"it reaches 0\.998.* and 100\.0%"):
        search(folded, form_of, replace(evidence, searched_on=crops, checked_on=crops), tmp_path)


@pytest.mark.parametrize("least", range(8))
def test_the_fewest_are_found_that_hold(least: int) -> None:
    tried: list[int] = []

    def holds(count: int) -> bool:
        tried.append(count)
        return count >= least

    assert least_count(holds, 7) == least
    assert len(tried) == len(set(tried)) <= 6


@pytest.mark.parametrize("angles", [(0, 0, 0), (5, 0, 0), (-2, 2, 2)])
def test_a_search_holds_what_measuring_everything_holds(
    folded: ir.Model, form: Form, evidence: Evidence, tmp_path: Path, angles: tuple[float, ...]
) -> None:
    """Nothing is wrong; a CLS token is; only the neighbours are."""
    crops = crops_with_neighbours(evidence.checked_on.cases[0], *angles)
    with running(form.build(folded, 0), tmp_path, Precision.FP32) as graph:
        holds = graph.holds(crops, INT8_LIMITS)
        assert holds is graph.measure(crops, INT8_LIMITS).holds is (angles == (0, 0, 0))


def test_a_search_stops_at_the_first_crop_that_misses(
    folded: ir.Model,
    form: Form,
    evidence: Evidence,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crops = crops_with_neighbours(evidence.checked_on.cases[0], 0, 5, 0, 0, 0)
    calls = []
    infer = OpenVinoBackend.infer
    monkeypatch.setattr(
        OpenVinoBackend, "infer", lambda self, *given: calls.append(1) or infer(self, *given)
    )
    with running(form.build(folded, 0), tmp_path, Precision.FP32) as graph:
        assert not graph.holds(crops, INT8_LIMITS)
    assert len(calls) == len(crops.cases) + 2
