"""`dinov2rt knn` on invented features."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinov2rt.cli import main

CLASSES = ("ant", "bee", "cat")
TRAIN, TEST = 90, 60

Write = Callable[..., Path]
Knn = Callable[..., tuple[int, Any, str]]


def invented(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Keys in a folder a class, and CLS tokens around a centre a class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(len(CLASSES), 384))
    kinds = np.arange(count) % len(CLASSES)
    keys = [f"{CLASSES[kind]}/{seed}-{index}.jpg" for index, kind in enumerate(kinds)]
    return keys, (centres[kinds] + rng.normal(size=(count, 384))).astype(np.float32)


@pytest.fixture
def knn(capsys: pytest.CaptureFixture[str]) -> Knn:
    """The command with --json: its status, its document, and what it complained of."""

    def call(*arguments: object) -> tuple[int, Any, str]:
        status = main(["knn", *map(str, arguments), "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out), captured.err

    return call


@pytest.fixture
def eager(write_features: Write) -> tuple[Path, Path]:
    """Features to fit on and to test on, by float32."""
    return write_features("train", *invented(TRAIN, 0)), write_features("test", *invented(TEST, 1))


def test_features_that_tell_classes_apart_are_accurate(knn: Knn, eager: tuple[Path, Path]) -> None:
    train, test = eager
    status, document, complaints = knn("--train", train, "--test", test, "--labels", "folder")
    assert (status, complaints, document["comparisons"]) == (0, "", [])
    (one,) = document["sets"]
    assert (one["train_images"], one["test_images"], one["classes"]) == (TRAIN, TEST, 3)
    assert one["metadata"]["precision"] == "fp32"
    assert not document["synthetic_weights"]
    for name in ("knn", "logistic"):
        found = one["accuracy"][name]
        assert found["share"] == 1.0
        assert found["low"] == pytest.approx(1 / (1 + 1.96**2 / TEST), abs=1e-4)  # Wilson's


def test_another_precision_is_compared_image_by_image(
    knn: Knn, eager: tuple[Path, Path], write_features: Write
) -> None:
    keys, tokens = invented(TEST, 1)
    order = np.random.default_rng(2).permutation(TEST)  # another order of the same images
    tokens[:9] = -tokens[:9]  # a few that another precision would get wrong
    half_train = write_features("h_train", *invented(TRAIN, 0), precision="fp16", dtype="float16")
    half_test = write_features(
        "h_test", [keys[at] for at in order], tokens[order], precision="fp16", dtype="float16"
    )
    train, test = eager
    status, document, _ = knn(
        *("--train", train, "--test", test, "--labels", "folder", "--only-knn"),
        *("--against", half_train, half_test, "--against", *eager),
    )
    assert status == 0
    worse, same = (one["difference"] for one in document["comparisons"])
    assert (worse["only_first"], worse["only_second"]) == (9, 0)
    assert worse["difference"] == pytest.approx(-9 / TEST)
    assert worse["high"] < 0 and worse["p_value"] < 0.01
    assert (same["difference"], same["p_value"]) == (0.0, 1.0)
    assert same["low"] < 0 < same["high"]


def test_people_get_tables_and_the_methods(
    eager: tuple[Path, Path], write_features: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic = [
        write_features(name, *invented(count, seed), weights_source="synthetic:0")
        for name, count, seed in (("s_train", TRAIN, 0), ("s_test", TEST, 1))
    ]
    arguments = ["--train", *eager[:1], "--test", *eager[1:], "--labels", "folder", "--only-knn"]
    assert main(["knn", *map(str, arguments), "--against", *map(str, synthetic)]) == 0
    text = capsys.readouterr().out
    assert "dinov2_vits14  fp32       90 + 60  3        knn         100.00%" in text
    assert f"against {eager[1]}" in text
    assert "+0.00%      -4.47% to +4.47%" in text
    assert "Bonett and Price's for a paired difference; p: McNemar's exact test" in text
    assert "note: the weights are synthetic: these accuracies come of colour and texture" in text


def test_train_and_test_may_be_labelled_by_different_files(
    knn: Knn, eager: tuple[Path, Path], tmp_path: Path
) -> None:
    files = [tmp_path / "train.csv", tmp_path / "test.csv"]
    for file, (keys, _) in zip(files, (invented(TRAIN, 0), invented(TEST, 1)), strict=True):
        lines = [f"{key},{Path(key).parent.name}" for key in keys]
        file.write_text("\n".join(["key,label", *lines]))
    sets = ("--train", eager[0], "--test", eager[1], "--only-knn")
    status, document, _ = knn(*sets, "--labels", files[0], "--test-labels", files[1])
    assert (status, document["sets"][0]["accuracy"]["knn"]["share"]) == (0, 1.0)
    status, document, _ = knn(*sets, "--labels", files[0])
    assert status == 2
    assert "train.csv has no label for 60 of 60 images, such as ant/1-0.jpg" in str(document)


def test_features_that_do_not_belong_together_are_refused(
    knn: Knn, eager: tuple[Path, Path], write_features: Write
) -> None:
    train, test = eager
    keys, tokens = invented(TEST, 1)
    half = write_features("half", keys, tokens, precision="fp16")
    fewer = write_features("fewer", keys[2:], tokens[2:])
    twice = write_features("twice", [*keys, keys[0]], np.concatenate([tokens, tokens[:1]]))
    odd = write_features("odd", ["emu/1.jpg"], tokens[:1])
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--test", half), "has precision fp32, but"),
        (("--test", test, "--against", train, fewer), "2 images of"),
        (("--test", twice), "has 1 images more than once, such as ant/1-0.jpg"),
        (("--test", odd), "1 test images have labels that no training image has, such as emu"),
        (("--test", test, "-k", 91), "91 neighbours; allowed are 1 to 90"),
        (("--test", test, "--temperature", 0), "temperature 0; it must be greater than 0"),
    ]
    for arguments, message in cases:
        status, document, complaints = knn("--train", train, "--labels", "folder", *arguments)
        assert status == 2
        assert message in document["error"]["message"]
        assert len(complaints.splitlines()) == 1
