"""Int8 graphs: what is quantised, how far off that is, and what the search leaves in float32."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.normalization import normalize
from dinov2rt.bundle.signature import NO_EXTRAS, InputFormat
from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import ExportError
from dinov2rt.export.folding import fold
from dinov2rt.export.golden import eager_case, golden_pixels
from dinov2rt.export.int8.gptq import Int8Weight, to_nearest
from dinov2rt.export.int8.graph import product_weights, to_int8
from dinov2rt.export.int8.products import product_names
from dinov2rt.export.int8.search import Crops, Evidence, _least, round_weights, search
from dinov2rt.export.int8.sensitivity import rank, rounded
from dinov2rt.export.model import load_eager
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.backends.openvino import OpenVinoBackend, cannot_run_int8
from dinov2rt.runtime.backends.openvino_program import INT8_GROUP


@pytest.fixture(scope="module", params=["dinov2_vits14_reg", "dinov2_vitg14"])
def variant(request: pytest.FixtureRequest, toy_variant: Callable[[str], Variant]) -> Variant:
    return toy_variant(request.param)


@pytest.fixture(scope="module")
def folded(toy_trace: Callable[[str], ir.Model], variant: Variant) -> ir.Model:
    model = toy_trace(variant.name).clone()
    fold(model, variant)
    return model


@pytest.fixture(scope="module")
def evidence(variant: Variant) -> Evidence:
    model = load_eager(variant, synthetic_state_dict(variant, 0))
    pixels = golden_pixels(ImageSize(98, 126), ("chelsea.jpg", "astronaut.jpg"))
    case = eager_case(model, "98x126", pixels, InputFormat.IMAGES, NO_EXTRAS)
    crops = Crops((case,), case)  # of two, each is the other's nearest, whatever is done to them
    return Evidence(rank(model, torch.from_numpy(normalize(pixels))), crops, crops)


@pytest.fixture(scope="module")
def weights(folded: ir.Model, variant: Variant) -> dict[str, Int8Weight]:
    return round_weights(folded, load_eager(variant, synthetic_state_dict(variant, 0)))


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


def test_products_are_int8_but_those_named(
    folded: ir.Model, weights: dict[str, Int8Weight], variant: Variant
) -> None:
    assert tuple(product_weights(folded)) == product_names(variant)
    model = folded.clone()
    to_int8(model, weights, ["blocks.1.down"])
    kinds = Counter(node.op_type for node in model.graph)
    assert kinds["DequantizeLinear"] == 4 * variant.depth - 1
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
    want = rounded(tokens).numpy() @ (weight.integers * weight.scale) + bias
    exact = tokens.numpy() @ (weight.integers * weight.scale) + bias
    assert relative(got, want) < 1e-4  # a number halfway between two may be rounded to either
    assert (relative(got, exact) > 1e-3) is (width >= INT8_GROUP)


def run_product(
    folder: Path, tokens: np.ndarray, weight: Int8Weight, bias: np.ndarray
) -> np.ndarray:
    """`tokens @ weight + bias` as int8 graphs say it, in OpenVINO."""
    constants = [
        onnx.numpy_helper.from_array(value, name)
        for name, value in (
            ("integers", weight.integers),
            ("scale", weight.scale),
            ("bias", bias),
        )
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["integers", "scale"], ["weight"], axis=1),
        helper.make_node("MatMul", ["tokens", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
    ]
    shape = ["batch", "tokens", tokens.shape[2]]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("tokens", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, [*shape[:2], bias.size])],
        constants,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), folder / "p.onnx"
    )
    return OpenVinoBackend(folder / "p.onnx", threads=1).infer({"tokens": tokens}, ["sum"])["sum"]


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_every_product_is_ranked_once(variant: Variant, evidence: Evidence) -> None:
    assert sorted(evidence.ranked) == sorted(product_names(variant))


def test_the_search_says_what_stayed_float32_and_how_well_it_agrees(
    folded: ir.Model,
    weights: dict[str, Int8Weight],
    variant: Variant,
    evidence: Evidence,
    tmp_path: Path,
) -> None:
    graph, entry = search(folded, weights, evidence, tmp_path)
    kinds = Counter(node.op_type for node in graph.graph)
    int8 = set(product_names(variant)) - set(entry.float32)
    three = sum(name.endswith("qkv") for name in int8)  # as three products, see `split_qkv`
    assert kinds["DequantizeLinear"] == len(int8) + 2 * three
    assert 0.999 <= entry.cls_cosine_min < 1
    assert 0.995 <= entry.token_cosine_p1 < 1
    assert entry.kept_nearest == 1
    assert not list(tmp_path.iterdir())


def test_weights_that_int8_cannot_hold_are_refused(
    folded: ir.Model, weights: dict[str, Int8Weight], evidence: Evidence, tmp_path: Path
) -> None:
    (case,) = evidence.checked_on.cases
    other = {name: np.flip(value, -1) for name, value in case.outputs.items()}
    wrong = Crops((GoldenCase(case.name, case.images, other),), case)
    with pytest.raises(ExportError, match=r'int8 does not hold .* leave "int8" out'):
        search(folded, weights, Evidence(evidence.ranked, wrong, wrong), tmp_path)


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
    folded: ir.Model, weights: dict[str, Int8Weight], evidence: Evidence, tmp_path: Path
) -> None:
    # each finds the first of the others, where the second and the third are the same
    crops = crops_with_neighbours(evidence.checked_on.cases[0], -2, 2, 2)
    with pytest.raises(ExportError, match=r"99% of nearest neighbours .* and 33\.3%"):
        search(folded, weights, Evidence(evidence.ranked, crops, crops), tmp_path)


def test_a_neighbour_as_near_as_the_nearest_is_kept_but_not_the_same(
    folded: ir.Model, weights: dict[str, Int8Weight], evidence: Evidence, tmp_path: Path
) -> None:
    crops = crops_with_neighbours(evidence.checked_on.cases[0], -1.2, 0.3, 1.2)
    _, entry = search(folded, weights, Evidence(evidence.ranked, crops, crops), tmp_path)
    assert (entry.same_nearest, entry.kept_nearest) == (pytest.approx(1 / 3), 1)


def test_cls_tokens_of_the_gallery_have_to_hold_the_limit(
    folded: ir.Model, weights: dict[str, Int8Weight], evidence: Evidence, tmp_path: Path
) -> None:
    crops = crops_with_neighbours(evidence.checked_on.cases[0], 3, 3, 3)  # 1 - cos is 1.4e-3
    with pytest.raises(ExportError, match=r"it reaches 0\.998.* and 100\.0%"):
        search(folded, weights, Evidence(evidence.ranked, crops, crops), tmp_path)


@pytest.mark.parametrize("least", range(8))
def test_the_fewest_are_found_that_hold(least: int) -> None:
    tried: list[int] = []

    def holds(count: int) -> bool:
        tried.append(count)
        return count >= least

    assert _least(holds, 7) == least
    assert len(tried) == len(set(tried)) <= 6
