"""The traced graph: dynamic where it must be, readable, and the eager model's function."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.normalization import IMAGENET, normalize
from dinov2rt.bundle.signature import NO_EXTRAS, OPSET, Extras
from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import ExportError
from dinov2rt.export.frontend import attach_pixel_input
from dinov2rt.export.golden import eager_outputs
from dinov2rt.export.graph import ExportGraph
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.trace import name_dimensions, trace
from dinov2rt.export.weights.synthetic import synthetic_state_dict

SHAPES = [(1, 14, 14), (3, 14, 28), (1, 224, 224), (2, 518, 518), (1, 518, 532), (4, 27, 41)]
LAYERS = Extras((0, 1))


@pytest.fixture(scope="module", params=["dinov2_vits14", "dinov2_vits14_reg", "dinov2_vitg14_reg"])
def model(request: pytest.FixtureRequest, toy_variant: Callable[[str], Variant]) -> Dinov2:
    variant = toy_variant(request.param)
    return load_eager(variant, synthetic_state_dict(variant, 0))


@pytest.fixture(scope="module")
def traced(model: Dinov2) -> ir.Model:
    return trace(ExportGraph(model.architecture, model.state_dict(), LAYERS).eval())


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_one_graph_is_the_eager_model_at_every_shape(model: Dinov2, traced: ir.Model) -> None:
    run = session(traced)
    names = [output.name for output in run.get_outputs()]
    rng = np.random.default_rng(0)
    for batch, height, width in SHAPES:
        images = rng.standard_normal((batch, 3, height, width), dtype=np.float32)
        want = eager_outputs(model, torch.from_numpy(images), LAYERS)
        assert list(want) == names
        for name, got in zip(names, run.run(None, {"images": images}), strict=True):
            assert got.shape == want[name].shape, (name, height, width)
            assert relative_l2(got, want[name]) < 1e-5, (name, height, width)


def test_inputs_outputs_and_dimensions_have_readable_names(model: Dinov2, traced: ir.Model) -> None:
    def shape(value: ir.Value) -> list[str | int]:
        return [dim if isinstance(dim, int) else str(dim) for dim in value.shape or ()]

    (images,) = traced.graph.inputs
    assert (images.name, shape(images)) == ("images", ["batch", 3, "height", "width"])
    outputs = {output.name: shape(output) for output in traced.graph.outputs}
    assert outputs.pop("patch_tokens") == ["batch", "num_patches", 128]
    assert outputs.pop("layer_1_patch_tokens") == ["batch", "num_patches", 128]
    assert outputs.pop("cls_token") == outputs.pop("layer_0_cls_token") == ["batch", 128]
    if model.architecture.num_registers:
        assert outputs.pop("register_tokens") == ["batch", 4, 128]


def test_one_attention_a_block_and_no_resize(model: Dinov2, traced: ir.Model) -> None:
    operators = [node.op_type for node in traced.graph]
    assert operators.count("Attention") == model.architecture.depth
    assert "Resize" not in operators
    assert traced.opset_imports[""] == OPSET
    names = [node.name for node in traced.graph]
    assert len(set(names)) == len(names)
    assert any(str(name).startswith("blocks.1.qkv/MatMul") for name in names)


def test_weights_keep_their_names(model: Dinov2, traced: ir.Model) -> None:
    for index in range(model.architecture.depth):
        for kind in ("qkv", "proj", "up", "down"):
            assert f"blocks.{index}.{kind}.weight" in traced.graph.initializers


def test_nothing_tells_where_it_was_made(traced: ir.Model) -> None:
    text = str(ir.to_proto(traced))
    assert ".py" not in text
    assert "stack_trace" not in text


def test_the_pixel_input_is_normalised_in_the_graph(traced: ir.Model) -> None:
    with_pixels = traced.clone()
    attach_pixel_input(with_pixels, IMAGENET)
    proto = ir.to_proto(with_pixels)
    onnx.checker.check_model(proto, full_check=True)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 45, 60, 3), dtype=np.uint8)
    want = session(traced).run(None, {"images": normalize(pixels)})
    run = session(with_pixels)
    assert [value.name for value in run.get_inputs()] == ["pixels"]
    for got, expected in zip(run.run(None, {"pixels": pixels}), want, strict=True):
        assert relative_l2(got, expected) < 1e-5


def test_padding_adds_zeros_after_normalisation(traced: ir.Model) -> None:
    with_pixels = traced.clone()
    attach_pixel_input(with_pixels, IMAGENET)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 40, 60, 3), dtype=np.uint8)
    padding = np.array([0, 0, 1, 5, 0, 0, 1, 5], dtype=np.int64)
    padded = np.pad(normalize(pixels), ((0, 0), (0, 0), (1, 1), (5, 5)))
    want = session(traced).run(None, {"images": padded})
    got = session(with_pixels).run(None, {"pixels": pixels, "padding": padding})
    assert all(relative_l2(g, w) < 1e-5 for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        ("images", [2, 3, "height", "width"], r"input was exported as \(2, 3"),
        ("images", ["batch", 3, "height", 14], r"must be \('batch', 3, 'height', 'width'\)"),
        ("patch_tokens", ["batch", 35, 128], "patch_tokens was exported as .*which is not dynamic"),
        ("cls_token", [2, 128], "cls_token was exported as .*which is not dynamic"),
    ],
)
def test_a_dimension_that_was_specialised_is_an_error(
    traced: ir.Model,
    toy_variant: Callable[[str], Variant],
    value: str,
    shape: list[str | int],
    message: str,
) -> None:
    """Some versions of torch bake a size in without a word; the exporter must notice."""
    model = traced.clone()
    ends = {end.name: end for end in (*model.graph.inputs, *model.graph.outputs)}
    ends[value].shape = ir.Shape(shape)
    with pytest.raises(ExportError, match=message):
        name_dimensions(model, toy_variant("dinov2_vits14_reg"))


def test_a_structure_is_traced_once_and_takes_the_weights_of_each(
    toy_variant: Callable[[str], Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = toy_variant("dinov2_vits14")

    def traced_with(seed: int) -> list[np.ndarray]:
        graph = ExportGraph(variant, synthetic_state_dict(variant, seed)).eval()
        return session(trace(graph)).run(None, {"images": images.numpy()})

    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 42, 28), np.float32))
    first = traced_with(0)
    monkeypatch.delattr(torch.onnx, "export")  # none of its modules is traced again
    second = traced_with(1)
    eager = load_eager(variant, synthetic_state_dict(variant, 1))
    for got, want in zip(second, eager_outputs(eager, images, NO_EXTRAS).values(), strict=True):
        assert relative_l2(got, want) < 1e-5
    assert relative_l2(first[0], second[0]) > 0.1
    np.testing.assert_array_equal(traced_with(0)[0], first[0])


def test_another_structure_is_traced_anew(toy_variant: Callable[[str], Variant]) -> None:
    variant = toy_variant("dinov2_vits14")
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 42, 28), np.float32))
    for each in (
        variant,
        replace(variant, num_heads=1),  # the same shapes of weights
        replace(variant, antialias=True),
        replace(variant, native_grid=Grid(37, 30)),
    ):
        state = synthetic_state_dict(each, 0)
        got = session(trace(ExportGraph(each, state).eval())).run(None, {"images": images.numpy()})
        want = eager_outputs(load_eager(each, state), images, NO_EXTRAS)
        assert relative_l2(got[1], want["patch_tokens"]) < 1e-5, each
