"""`Model.map`, and the refusal of features that need a plan, on a model without a plan."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinov2rt.errors import InputError
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.model import Model, load


@pytest.fixture
def pooling(pooling_bundle: Path) -> Iterator[Model]:
    with load(pooling_bundle, device="cpu", threads=1) as model:
        yield model


def plain(value: int, count: int = 2) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((count, 14, 28, 3), value, np.uint8)


def colour(features: Features | list[Features]) -> int:
    assert isinstance(features, Features)
    return int(features.cls_token[0, 0])


def test_batches_come_back_in_their_order(pooling: Model) -> None:
    results = list(pooling.map(plain(value) for value in range(20)))
    assert [colour(features) for features in results] == list(range(20))


def test_no_batch_gives_nothing(pooling: Model) -> None:
    assert list(pooling.map([])) == []


def test_a_batch_may_be_a_list_and_options_reach_every_call(pooling: Model) -> None:
    images = [np.full((14, 14, 3), 7, np.uint8), np.full((28, 30, 3), 9, np.uint8)]
    (features,) = pooling.map([images], outputs=["cls_token"])
    assert isinstance(features, list)
    assert [int(each.cls_token[0, 0]) for each in features] == [7, 9]
    assert list(features[0].outputs) == ["cls_token"]


def test_few_batches_are_read_ahead(pooling: Model) -> None:
    read = []

    def batches() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        for value in range(50):
            read.append(value)
            yield plain(value)

    results = pooling.map(batches())
    for value in range(10):
        assert colour(next(results)) == value
        assert value + 2 == len(read), "one batch ahead of the one that is returned"


def test_a_batch_is_read_while_another_runs(
    pooling: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_is_read = threading.Event()
    infer = pooling._backend.infer

    def waiting(*arguments: Any, **options: Any) -> Any:
        assert second_is_read.wait(timeout=30)
        return infer(*arguments, **options)

    monkeypatch.setattr(pooling._backend, "infer", waiting)

    def batches() -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        yield plain(1)
        second_is_read.set()
        yield plain(2)

    assert [colour(features) for features in pooling.map(batches())] == [1, 2]


def test_a_bad_batch_raises_in_its_turn(pooling: Model) -> None:
    results = pooling.map([plain(1), np.zeros((1, 14, 14, 3)), plain(3)])
    assert colour(next(results)) == 1
    with pytest.raises(InputError, match="got dtype float64"):
        next(results)


def test_an_abandoned_map_leaves_no_thread(pooling: Model) -> None:
    before = threading.active_count()
    results = pooling.map(plain(value) for value in range(50))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_outputs_on_the_gpu_need_a_plan(pooling: Model) -> None:
    with pytest.raises(InputError) as error:
        pooling(plain(1), device_outputs=True)
    assert str(error.value) == (
        "device_outputs: only TensorRT plans and the fused graph of ONNX Runtime CUDA do that, and "
        "this runs on "
        f"{pooling._backend.description}; pass and take numpy arrays"
    )


def test_images_on_the_gpu_need_a_plan(pooling: Model) -> None:
    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    images: Any = Elsewhere()
    with pytest.raises(
        InputError, match="images on the GPU: only TensorRT plans and the fused graph"
    ):
        pooling(images)
