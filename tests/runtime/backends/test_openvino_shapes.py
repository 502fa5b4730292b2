"""Shapes that are known beforehand: `Model.warm_up` in OpenVINO."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError
from dinov2rt.runtime.backends.openvino import FIXED_SHAPES, OpenVinoBackend, cannot_run_bf16
from dinov2rt.runtime.backends.protocol import ShapePreparer
from dinov2rt.runtime.model import Model, load


@pytest.fixture
def backend(pooling_bundle: Path) -> OpenVinoBackend:
    return OpenVinoBackend(pooling_bundle / "fp32.onnx", threads=1)


@pytest.fixture(scope="module")
def warm(bundle_s_reg: Path) -> Iterator[Model]:
    with load(bundle_s_reg, backend="openvino") as model:
        model.warm_up([(2, 56, 84)])
        yield model


def images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def shapes_of(backend: OpenVinoBackend) -> list[tuple[int, ...]]:
    return [shapes[0][1][:3] for shapes in backend._fixed]


def backend_of(model: Model) -> OpenVinoBackend:
    backend = model._choice.backend
    assert isinstance(backend, OpenVinoBackend)
    return backend


def test_a_prepared_shape_is_compiled_alone(warm: Model) -> None:
    backend = backend_of(warm)
    assert isinstance(backend, ShapePreparer)
    assert shapes_of(backend) == [(2, 56, 84)]
    (program,) = backend._fixed.values()
    runtime_model = program.request.get_compiled_model().get_runtime_model()
    assert not runtime_model.is_dynamic()


@pytest.mark.parametrize("snap", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(2, 56, 84), (1, 56, 84), (2, 60, 90), (2, 50, 80)])
def test_outputs_are_those_of_any_other_call(
    warm: Model, model: Model, shape: tuple[int, int, int], snap: str
) -> None:
    got, want = (each(images(*shape), snap=snap).outputs for each in (warm, model))
    for name in want:
        assert np.linalg.norm(got[name] - want[name]) < 1e-5 * np.linalg.norm(want[name]), name


def test_a_shape_that_the_graph_crops_is_prepared_as_it_is_called(pooling_bundle: Path) -> None:
    with load(pooling_bundle, backend="openvino") as model:
        model.warm_up([(1, 29, 45)])
        assert shapes_of(backend_of(model)) == [(1, 29, 45)]


def test_a_batch_of_several_passes_is_prepared_pass_by_pass(pooling_bundle: Path) -> None:
    with load(pooling_bundle, backend="openvino", max_pixels=2 * 28 * 28) as model:
        model.warm_up([(5, 28, 28)])
        assert shapes_of(backend_of(model)) == [(2, 28, 28), (1, 28, 28)]


def test_a_few_are_kept_and_the_one_unused_for_longest_is_evicted(backend: OpenVinoBackend) -> None:
    def prepare(batch: int) -> None:
        backend.prepare({"pixels": images(batch, 28, 28)})

    for batch in range(1, FIXED_SHAPES + 1):
        prepare(batch)
    prepare(1)
    backend.infer({"pixels": images(2, 28, 28)}, ["cls_token"])
    prepare(9)
    kept = [batch for batch, _, _ in shapes_of(backend)]
    assert kept == [*range(4, FIXED_SHAPES + 1), 1, 2, 9]
    got = backend.infer({"pixels": images(3, 28, 28)}, ["cls_token"])["cls_token"]
    np.testing.assert_allclose(got, images(3, 28, 28).mean((1, 2)), rtol=1e-5)


def test_a_closed_model_prepares_nothing(backend: OpenVinoBackend) -> None:
    backend.prepare({"pixels": images(1, 28, 28)})
    backend.close()
    with pytest.raises(BackendError, match="the model is closed; load it again"):
        backend.prepare({"pixels": images(1, 28, 28)})
    assert shapes_of(backend) == []


@pytest.mark.skipif(cannot_run_bf16() is not None, reason="bfloat16 needs AVX512_BF16 or AMX-BF16")
def test_bf16_of_a_known_shape_keeps_the_same_parts_in_float32(bundle_s_reg: Path) -> None:
    backend = OpenVinoBackend(bundle_s_reg / "fp32.onnx", threads=1, precision=Precision.BF16)
    backend.prepare({"pixels": images(2, 56, 84)})
    (program,) = backend._fixed.values()
    found: dict[str, set[tuple[str, str]]] = {}
    names = []
    for node in program.request.get_compiled_model().get_runtime_model().get_ordered_ops():
        facts = {name: str(value.value) for name, value in node.get_rt_info().items()}
        names.append(facts["originalLayersNames"])
        computed, given = facts["runtimePrecision"], facts["outputPrecisions"]
        kind = facts["layerType"]
        if "/Add_" in names[-1] and kind in ("Eltwise", "Subgraph"):
            kind = "residual stream"
        if kind in ("FullyConnected", "Convolution"):  # the CPU decides which
            kind = "product"
        found.setdefault(kind, set()).add((computed, given))
    assert found["residual stream"] == {("f32", "f32")}
    # Norms before products return bfloat16, the last one float32.
    assert found["MVN"] == {("f32", "bf16"), ("f32", "f32")}
    assert {computed for computed, _ in found["product"]} == {"bf16"}
    assert not [name for name in names if name.startswith("position/MatMul")]
