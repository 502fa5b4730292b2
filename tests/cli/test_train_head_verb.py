"""`dinov2rt train-head` on invented features, and its file as a head."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from dinov2rt.analysis import logistic
from dinov2rt.bundle.tasks.classifier_file import read_classifier
from dinov2rt.bundle.variants import find_variant
from dinov2rt.cli import main
from dinov2rt.export.heads.checkpoint import HeadSource, load_heads

Write = Callable[..., Path]
Train = Callable[..., tuple[int, Any, str]]
CLASSES = ("ant", "bee", "cat")


def invented(classes: int, count: int = 60) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, 384))
    kinds = np.arange(count) % classes
    keys = [f"{CLASSES[kind]}/{index}.jpg" for index, kind in enumerate(kinds)]
    return keys, (3 + centres[kinds] + rng.normal(size=(count, 384))).astype(np.float32)


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Train:
    def call(*arguments: object) -> tuple[int, Any, str]:
        out = ("--out", str(tmp_path / "head.npz"))
        labels = () if "--masks" in arguments else ("--labels", "folder")
        status = main(["train-head", *map(str, arguments), *labels, *out, "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else None, captured.err

    return call


@pytest.mark.parametrize("tokens", ["cls", "cls+mean"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_is_fitted_measured_and_can_be_exported(
    tokens: str, classes: int, train: Train, write_features: Write, tmp_path: Path
) -> None:
    keys, vectors = invented(classes)
    features = write_features("train", keys, vectors)
    status, document, _ = train("--features", features, "--tokens", tokens)
    assert status == 0
    assert document["classes"] == list(CLASSES[:classes])
    assert document["held_out_accuracy"]["share"] > (0.9 if tokens == "cls" else 0.6)
    own = read_classifier(tmp_path / "head.npz")
    read = vectors if tokens == "cls" else np.concatenate([vectors, vectors[::-1]], axis=1)
    predicted = np.array(own.class_names)[(read @ own.weight.T + own.bias).argmax(1)]
    assert np.mean(predicted == [key.partition("/")[0] for key in keys]) == 1
    source = HeadSource.parse_all(f"classifier={tmp_path / 'head.npz'}")
    (head,) = load_heads(source, find_variant("dinov2_vits14"))
    assert head.entry.class_names == CLASSES[:classes]
    assert head.entry.uses_mean == (tokens == "cls+mean")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["ant/1.jpg", "ant/2.jpg"], "all images have the label ant; two classes"),
        (["ant/1.jpg", "ant/2.jpg", "bee/1.jpg"], "1 classes have one image only, such as bee"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(
    keys: list[str], message: str, train: Train, write_features: Write
) -> None:
    vectors = np.ones((len(keys), 384), np.float32)
    status, _, complaint = train("--features", write_features("train", keys, vectors))
    assert status == 2
    assert message in complaint
    assert complaint.count("\n") == 1


def test_bad_options_are_one_line(train: Train, write_features: Write) -> None:
    features = write_features("train", *invented(2))
    for option, value, message in (
        ("--tokens", "all", 'allowed are "cls", "cls+mean", "layers+mean"'),
        ("--held-out", "1.5", "a share between 0 and 1"),
        ("-C", "0", "greater than 0"),
        ("--seed", "-1", "a whole number from 0 to 4294967295"),
        ("--seed", "4294967296", "a whole number from 0 to 4294967295"),
    ):
        status, _, complaint = train("--features", features, option, value)
        assert (status, message in complaint) == (2, True)


def test_names_of_classes_are_a_regular_file_of_bounded_size(
    train: Train, write_features: Write, tmp_path: Path
) -> None:
    features = write_features("train", *invented(2))
    (tmp_path / "masks").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"a" * (2**20 + 1))
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, reason in (("pipe", "a pipe"), ("large", "larger"), ("bytes", "as text")):
        masks = ("--masks", tmp_path / "masks", "--class-names", tmp_path / name)
        status, _, complaint = train("--features", features, *masks)
        assert (status, reason in complaint, complaint.count("\n")) == (2, True, 1)


@pytest.mark.filterwarnings("default::dinov2rt.errors.FitWarning")
def test_a_fit_that_is_stopped_too_early_is_said_in_one_line(
    train: Train, write_features: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic, "_MAX_ITERATIONS", 2)
    status, _, complaint = train("--features", write_features("train", *invented(3)))
    assert status == 0
    assert set(complaint.splitlines()) == {
        "dinov2rt: warning: the fit ended after 2 steps without converging, and may not be the "
        "best; a C other than 1 may make it easier"
    }


def test_a_fit_without_finite_weights_is_refused(train: Train, write_features: Write) -> None:
    keys, vectors = invented(2)
    narrow = write_features("narrow", keys, vectors * np.float32(1e-44))
    status, _, complaint = train("--features", narrow, "-C", "1e300")
    assert (status, "gives no finite weights" in complaint) == (2, True)


def test_a_small_fit_has_one_thread_and_a_large_one_what_there_is() -> None:
    vectors, labels = np.zeros((8, 4)), np.arange(8)
    before = threads_of_blas()
    with logistic._threads(vectors, labels):
        assert threads_of_blas() == [1] * len(before)
    with logistic._threads(np.zeros((10_000, 200)), np.arange(10_000) % 10):
        assert threads_of_blas() == before
    assert threads_of_blas() == before


def threads_of_blas() -> list[int]:
    return [each["num_threads"] for each in threadpool_info()]
