"""Manifests and golden outputs that would crash a reader, pass every check or reach a terminal."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinov2rt.bundle.entries import FileEntry
from dinov2rt.bundle.golden import Golden
from dinov2rt.bundle.limits import Limits
from dinov2rt.bundle.manifest import MANIFEST_NAME, Manifest
from dinov2rt.cli import main
from dinov2rt.errors import BundleError

Edit = Callable[[dict[str, Any]], None]
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
MOST_S = 5.0


def set_(*path: Any, to: Any) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        *parents, last = path
        place: Any = document
        for step in parents:
            place = place[step]
        place[last] = to

    return edit


def head(document: dict[str, Any], **changes: object) -> None:
    entry = {"name": "nyu-linear", "task": "depth", "decoder": "bins", "data": "nyu"}
    entry |= {"output": "depth", "source": "synthetic:0", "sha256": "0" * 64}
    document["heads"] = [{**entry, "layers": [11], "depth_range": [0.001, 10.0]} | changes]


def edited(bundle: Path, edit: Edit) -> str:
    document = json.loads((bundle / MANIFEST_NAME).read_text())
    edit(document)
    return json.dumps(document)


def refusal(bundle: Path, text: str) -> str:
    (bundle / MANIFEST_NAME).write_text(text)
    began = time.process_time()
    with pytest.raises(BundleError) as error:
        Manifest.read(bundle)
    assert time.process_time() - began < MOST_S
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2000
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("cosine_min", "cosine_p1", "relative_l2", "pooled_l2")
        for value in (np.inf, -np.inf, np.nan, -1.5 if name.startswith("cosine") else -1.0)
    ],
)
def test_limits_that_mean_nothing_are_refused(
    pooling_bundle: Path, name: str, value: float
) -> None:
    message = refusal(pooling_bundle, edited(pooling_bundle, limits(name, value)))
    assert "is no number" in message or "limits" in message


def limits(name: str, value: float) -> Edit:
    return set_("graphs", 0, "limits", name, to=value)


def test_the_cosine_minus_one_alone_is_refused_and_beside_an_error_fails_to_verify(
    pooling_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = set_("graphs", 0, "limits", to={"cosine_min": -1.0})
    assert "every output passes" in refusal(pooling_bundle, edited(pooling_bundle, alone))
    beside = set_("graphs", 0, "limits", to={"cosine_min": -1.0, "relative_l2": 1e5})
    (pooling_bundle / MANIFEST_NAME).write_text(edited(pooling_bundle, beside))
    assert main(["verify", str(pooling_bundle)]) == 1
    assert "UNVERIFIABLE" in capsys.readouterr().out


def test_usual_limits_are_sound() -> None:
    for sound in (Limits(0.99), Limits(0.9, 0.1, 0.8, 0.2), Limits(-1.0, 1.5)):
        sound.check()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_("golden", "size_bytes", to=-1), "golden.npz has -1 bytes"),
        (set_("golden", "size_bytes", to=2**70), "is too large"),
        (set_("golden", "path", to=ESCAPE), "holds control characters"),
        (set_("golden", "path", to="\u202egnp"), "holds control characters"),
        (set_("golden", "path", to="../" + "x" * 10**5), "does not lie in the bundle"),
        (set_("architecture", "ffn", to="x" * 10**5), "is neither mlp nor swiglu"),
        (set_("graphs", 0, "precision", to=ESCAPE), "is not a valid Precision"),
        (set_("tools", to={ESCAPE: 1}), "manifest.tools."),
        (set_("weights", "source", to="\ud800"), "lone surrogate"),
        (
            lambda document: document["graphs"].extend([document["graphs"][0]] * 2000),
            "manifest.graphs has 2001 entries; allowed are 1000",
        ),
        (lambda document: head(document, name="../../out"), "name or data is '../../out'"),
        (lambda document: head(document, data="/etc/x"), "name or data is '/etc/x'"),
        (lambda document: head(document, depth_range=[1.0, 0.5]), "has depths from 1.0 to 0.5"),
    ],
)
def test_manifests_that_are_refused(pooling_bundle: Path, edit: Edit, reason: str) -> None:
    assert reason in refusal(pooling_bundle, edited(pooling_bundle, edit))


def test_profiles_are_counted_before_they_are_read(pooling_bundle: Path) -> None:
    plan: dict[str, Any] = dict.fromkeys(
        ("file", "flavour", "version", "target", "precision", "input_name", "outputs")
    )
    plan |= {"profiles": [{}] * 300_000}
    plan |= dict.fromkeys(("fused_attention", "weight_bytes", "build_seconds", "graph_sha256"))
    plan["file"] = {"path": "a.plan", "size_bytes": 1, "sha256": "0"}
    plan |= {"flavour": "tensorrt", "version": "1", "target": "sm80", "precision": "fp16"}
    plan |= {"input_name": "pixels", "outputs": ["cls_token"]}
    message = refusal(pooling_bundle, edited(pooling_bundle, set_("plans", to=[plan])))
    assert "manifest.plans[0].profiles has 300000 entries; allowed are 1000" in message


def test_a_key_that_stands_twice_is_refused(pooling_bundle: Path) -> None:
    text = (pooling_bundle / MANIFEST_NAME).read_text()
    twice = text.replace('"path": "golden.npz"', '"path": "other.npz", "path": "golden.npz"')
    assert "the key 'path' stands twice" in refusal(pooling_bundle, twice)


def with_golden(bundle: Path, **arrays: Any) -> Path:
    """The bundle with other golden outputs, named in its manifest."""
    with np.load(bundle / "golden.npz") as archive:
        own = dict(archive)
    np.savez(bundle / "golden.npz", **(own | arrays))
    manifest = Manifest.read(bundle)
    entry = FileEntry.of(bundle, "golden.npz")
    dataclasses.replace(manifest, golden=entry).write(bundle)
    return bundle / "golden.npz"


@pytest.mark.parametrize(
    "arrays",
    [
        {"cls_token": np.array([["a", "b", "c"]] * 2)},
        {"cls_token": np.zeros((2, 3), np.complex64)},
        {"cls_token": np.zeros((2, 3), "M8[s]")},
        {"cls_token": np.zeros((2, 3), [("a", "f4")])},
        {"cls_token": np.zeros((0, 3), np.float32)},
        {"images": np.array([["a"]])},
        {"images": np.zeros((1, 2))},
        {"images": np.zeros((0, 28, 42, 3), np.uint8)},
        {"cases": np.array(5)},
        {"cases": np.array(["a"] * 2000)},
        {"cases": np.array([ESCAPE, "other"])},
    ],
    ids=str,
)
def test_golden_outputs_that_hold_no_numbers_are_refused(
    pooling_bundle: Path, arrays: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = with_golden(pooling_bundle, **arrays)
    with pytest.raises(BundleError, match="holds no golden outputs"):
        Golden.read(file)
    assert main(["verify", str(pooling_bundle)]) == 2
    said = capsys.readouterr().err
    assert "unexpected" not in said
    assert "\x1b" not in said


def test_names_of_a_bundle_do_not_reach_the_terminal_as_they_are(
    pooling_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_golden(pooling_bundle, cases=np.array([ESCAPE]))
    manifest = Manifest.read(pooling_bundle)
    weights = dataclasses.replace(manifest.weights, source=ESCAPE)
    tools = {ESCAPE: ESCAPE}
    dataclasses.replace(manifest, weights=weights, tools=tools).write(pooling_bundle)
    for verb in ("info", "verify", "doctor"):
        main([verb, str(pooling_bundle)])
        captured = capsys.readouterr()
        assert "\x1b" not in captured.out + captured.err
    assert main(["info", str(pooling_bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["weights"]["source"] == ESCAPE
    assert list(document["golden_cases"]) == [ESCAPE]
