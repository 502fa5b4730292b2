"""Answers of heads through the runtime: which passes, which sizes, names, and what is refused."""

import dataclasses
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.heads import OFFICIAL_HEADS
from dinov2rt.bundle.signature import layer_output_names
from dinov2rt.errors import BundleError, InputError
from dinov2rt.runtime.gpu.device_arrays import DeviceArray, is_on_gpu
from dinov2rt.runtime.gpu.memory_layout import TensorSpec
from dinov2rt.runtime.model import Model, load
from dinov2rt.runtime.predict import _answer
from dinov2rt.runtime.predictions import Classification, Depth, Predictions, Segmentation


@pytest.fixture(scope="module")
def model(bundle_heads: Path) -> Iterator[Model]:
    with load(bundle_heads, device="cpu", backend="onnxruntime") as model:
        yield model


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_the_bundle_is_verified_with_every_head(model: Model) -> None:
    report = model.verify()
    assert report, report
    assert {task.output for task in report.tasks} >= {"depth_nyu_dpt", "logits_linear", "attention"}


def test_each_head_answers_as_alone_whatever_the_others_need(model: Model) -> None:
    """Dense heads pad an image that a classifier crops."""
    pixels = drawn(1, 45, 31)
    together = model.predict(pixels)
    assert list(together) == list(OFFICIAL_HEADS)
    cropped = model.predict(pixels[:, :42, :28], heads="linear")
    assert isinstance(cropped, Classification)
    assert isinstance(together, Predictions)
    np.testing.assert_allclose(together["linear"].logits, cropped.logits, rtol=1e-4, atol=1e-4)
    depth = together["nyu-linear"]
    assert isinstance(depth, Depth)
    assert depth.metres.shape == (1, 45, 31)
    assert depth.depth_range == (0.001, 10.0)
    assert together["kitti-dpt"].depth_range == (0.001, 80.0)
    forced = model.predict(pixels, heads=["linear", "nyu-linear"], snap="crop")
    assert forced["nyu-linear"].metres.shape == (1, 42, 28)


class OnGpu:
    """Stands for images on a GPU, and for a backend that takes them and leaves answers there."""

    dtype, description, concurrent_calls, reads_gpu_arrays = "uint8", "a GPU", 1, True

    specs: ClassVar = {
        "logits_linear": TensorSpec((2, 1000), np.dtype(np.float32)),
        "depth_nyu_dpt": TensorSpec((2, 42, 56), np.dtype(np.float32)),
        "segmentation_ade20k_linear": TensorSpec((2, 42, 56), np.dtype(np.uint8)),
    }

    def __init__(self, *shape: int) -> None:
        self.shape, self.asked = shape, []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "OnGpu":
        assert range(len(self))[rows] == range(len(self))
        return self

    def batch_limit(self, size: ImageSize) -> None:
        assert size == ImageSize(42, 56)

    def infer(
        self, inputs: dict[str, Any], outputs: tuple[str, ...], *, device_outputs: bool
    ) -> dict[str, Any]:
        assert inputs == {"pixels": self}
        self.asked.append((outputs, device_outputs))
        memory: Any = None
        return {name: DeviceArray(memory, 0, self.specs[name]) for name in outputs}


def test_images_on_a_gpu_take_one_pass_and_answers_stay_there(model: Model) -> None:
    images = OnGpu(2, 42, 56, 3)
    choice = dataclasses.replace(model._choice, backend=images)
    on_gpu = dataclasses.replace(model, _choice=choice)
    heads = ["linear", "nyu-dpt", "ade20k-linear"]
    answers = on_gpu.predict(images, heads=heads, device_outputs=True)
    assert images.asked == [(tuple(OnGpu.specs), True)]
    for value in (answers["nyu-dpt"].metres, answers["ade20k-linear"].classes):
        assert is_on_gpu(value)
        assert value.shape == (2, 42, 56)
    assert is_on_gpu(answers["ade20k-linear"][1].classes)
    with pytest.raises(InputError, match='snap="crop" runs on the host'):
        on_gpu.predict(OnGpu(2, 45, 56, 3), heads=heads)


def test_a_list_of_sizes_comes_back_in_order(model: Model) -> None:
    images = [drawn(28, 42), drawn(31, 30), drawn(28, 42)[::-1]]
    answers = model.predict(images, heads="ade20k-linear", scores=True)
    assert [each.classes.shape for each in answers] == [(1, 28, 42), (1, 31, 30), (1, 28, 42)]
    for image, answer in zip(images, answers, strict=True):
        alone = model.predict(image, heads="ade20k-linear", scores=True)
        np.testing.assert_allclose(answer.scores, alone.scores, rtol=1e-3, atol=1e-3)


def test_classes_are_the_best_of_the_scores(model: Model) -> None:
    answer = model.predict(drawn(2, 33, 47), heads="voc2012-ms", scores=True)
    assert isinstance(answer, Segmentation)
    assert len(answer) == 2
    assert np.mean(answer.full_scores().argmax(1) == answer.classes) > 0.999
    assert answer.names[answer.classes[0, 0, 0]]
    np.testing.assert_array_equal(
        answer.colours()[1, 2, 3], answer.palette[answer.classes[1, 2, 3]]
    )
    with pytest.raises(InputError, match="scores were not asked for"):
        model.predict(drawn(28, 28), heads="voc2012-ms").full_scores()


def test_the_most_probable_classes_come_first(model: Model) -> None:
    answer = model.predict(drawn(2, 28, 28), heads="linear4")
    (first, *_), _ = answer.top(3)
    assert first.index == int(answer.logits[0].argmax())
    assert first.name == answer.names[first.index]
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, rtol=1e-5)
    assert first.probability == pytest.approx(float(answer.probabilities[0].max()))
    assert len(answer[1]) == 1
    with pytest.raises(InputError, match="top 0"):
        answer.top(0)


def test_features_are_those_of_a_bundle_without_heads(model: Model, model_plain: Model) -> None:
    pixels = drawn(1, 45, 31)
    for snap in ("crop", "pad"):
        features = model(pixels, snap=snap)
        layers = {name for layer in range(8, 12) for name in layer_output_names(layer)}
        assert set(features.outputs) == {"cls_token", "patch_tokens", "attention", *layers}
        want = model_plain(pixels, snap=snap)
        assert features.grid == want.grid
        np.testing.assert_allclose(features.cls_token, want.cls_token, rtol=1e-3, atol=1e-3)
    assert features.attention.shape == (1, 6, 4, 3)


def test_what_cannot_be_asked_is_one_line(model: Model, model_plain: Model) -> None:
    with pytest.raises(InputError, match="this bundle has no head; export one with"):
        model_plain.predict(drawn(28, 28))
    with pytest.raises(InputError, match="this bundle has linear, linear4"):
        model.predict(drawn(28, 28), heads="dpt")
    with pytest.raises(InputError, match="unknown snap"):
        model.predict(drawn(28, 28), snap="stretch")
    with pytest.raises(InputError, match="2 heads answer with Classification"):
        _ = model.predict(drawn(28, 28), heads=["linear", "linear4"]).classification


def test_a_pickled_model_still_answers(model: Model) -> None:
    with pickle.loads(pickle.dumps(model)) as again:
        answer = again.predict(drawn(28, 28), heads="linear")
    assert answer.logits.shape == (1, 1000)


def test_the_manifest_says_what_heads_there_are(model: Model) -> None:
    by_name = {head.name: head for head in model.manifest.heads}
    assert by_name["nyu-dpt"].layers == (2, 5, 8, 11)
    assert by_name["ade20k-ms"].num_classes == 150
    assert by_name["linear"].source == "synthetic:0"
    assert "--head linear=synthetic:0,linear4=synthetic:0," in model.manifest.rebuild_command(
        model.path
    )


@pytest.mark.parametrize(
    ("head", "value"),
    [("linear", np.zeros((1, 1001), np.float32)), ("voc2012-linear", np.full((1, 2, 2), 21))],
)
def test_more_classes_than_names_are_refused(model: Model, head: str, value: np.ndarray) -> None:
    (entry,) = (entry for entry in model.manifest.heads if entry.name == head)
    with pytest.raises(BundleError, match=rf"head {head} returns \d+ classes, and the manifest na"):
        _answer({entry.output: value}, entry, scores=False)


@pytest.mark.parametrize(
    ("head", "value", "changes", "reason"),
    [
        ("linear", np.zeros((1, 2, 2), np.float32), {}, "does not fit head linear"),
        ("nyu-linear", np.zeros((1, 2), np.float32), {}, "does not fit head nyu-linear"),
        ("nyu-linear", np.zeros((1, 2, 2), np.uint8), {}, "does not fit head nyu-linear"),
        ("ade20k-ms", np.zeros((1, 2, 2), np.float32), {}, "does not fit head ade20k-ms"),
        ("linear", np.zeros((1, 5), np.float32), {"data": "nosuch"}, "unknown classes 'nosuch'"),
        ("nyu-linear", np.zeros((1, 2, 2), np.float32), {"depth_range": None}, "states no range"),
        ("ade20k-ms", np.zeros((1, 2, 2), np.uint8), {"data": "imagenet1k"}, "have no palette"),
    ],
)
def test_a_manifest_that_contradicts_its_graph_is_refused_as_a_bundle(
    model: Model, head: str, value: np.ndarray, changes: dict[str, Any], reason: str
) -> None:
    """One line for the bundle, and not one for every image."""
    (entry,) = (entry for entry in model.manifest.heads if entry.name == head)
    with pytest.raises(BundleError, match=reason):
        _answer({entry.output: value}, replace(entry, **changes), scores=False)
