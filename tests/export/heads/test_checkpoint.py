"""Weights of heads: the recipe, files and what is wrong with them, and which backbone they fit."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dinov2rt.bundle.heads import OFFICIAL_HEADS
from dinov2rt.bundle.tasks.classes import class_table
from dinov2rt.bundle.tasks.classifier_file import (
    FORMAT,
    OwnClassifier,
    read_classifier,
    write_classifier,
)
from dinov2rt.bundle.tasks.segmenter_file import read_segmenter
from dinov2rt.bundle.variants import Variant, find_variant
from dinov2rt.errors import InputError, WeightsError
from dinov2rt.export.heads.checkpoint import (
    HeadSource,
    file_keys,
    load_heads,
    module_of_spec,
    official_head_url,
)
from dinov2rt.export.heads.readers import read_head
from dinov2rt.export.heads.synthetic import synthetic_head

PLAIN = find_variant("dinov2_vits14")


def state_of(name: str, variant: Variant) -> dict[str, torch.Tensor]:
    spec = OFFICIAL_HEADS[name]
    shapes = {
        key: tuple(value.shape)
        for key, value in file_keys(spec, module_of_spec(spec, variant)).items()
    }
    arrays = synthetic_head(spec, variant.embed_dim, shapes, 0)
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def loaded(source: str, variant: Variant) -> Any:
    (head,) = load_heads(HeadSource.parse_all(source), variant)
    return head


@pytest.mark.parametrize("name", ["nyu-dpt", "ade20k-linear", "linear4", "kitti-linear"])
def test_files_hold_the_same_as_the_recipe(name: str, narrow: Variant, tmp_path: Path) -> None:
    state = state_of(name, narrow)
    torch.save({"state_dict": state, "meta": {}, "optimizer": {"state": {}}}, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "b.pth")
    want = loaded(f"{name}=synthetic:0", narrow).module.state_dict()
    for file in ("a.pth", "a.safetensors", "b.pth"):
        got = loaded(f"{name}={tmp_path / file}", narrow)
        assert len(got.entry.sha256) == 64
        for key, value in got.module.state_dict().items():
            assert torch.equal(value, want[key]), key


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_a_numpy_scalar_beside_the_weights_is_read(
    module: bytes, narrow: Variant, tmp_path: Path
) -> None:
    """As mmcv's best score stands there, pickled by numpy 1 or 2."""
    state = state_of("nyu-linear", narrow)
    file = tmp_path / "a.pth"
    torch.save(
        {"state_dict": state, "meta": {"best": np.float32(0.5)}},
        file,
        _use_new_zipfile_serialization=False,
    )
    content = file.read_bytes()
    assert b"multiarray" in content
    written = b"numpy._core.multiarray" if b"numpy._core" in content else b"numpy.core.multiarray"
    file.write_bytes(content.replace(written, module))
    assert set(read_head(file)) == set(state)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="nothing in it was run"):
        read_head(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def test_a_file_of_another_head_is_refused_by_its_keys_and_shapes(
    narrow: Variant, tmp_path: Path
) -> None:
    save_file(state_of("ade20k-linear", narrow), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="no nyu-linear head: 2 tensors are missing"):
        loaded(f"nyu-linear={tmp_path / 'a.safetensors'}", narrow)
    with pytest.raises(WeightsError, match=r"bn\.\w+ has shape|conv_seg\.\w+ has shape"):
        loaded(f"ade20k-ms={tmp_path / 'a.safetensors'}", narrow)
    damaged = state_of("linear", narrow)
    damaged["bias"][3] = torch.nan
    save_file(damaged, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match="bias holds NaN"):
        loaded(f"linear={tmp_path / 'b.safetensors'}", narrow)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpt", "unknown head 'dpt'; allowed are linear"),
        ("linear,linear=a.pth", "each can be given once"),
        ("classifier", "needs a file"),
    ],
)
def test_bad_requests_are_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loaded(text, PLAIN)


@pytest.mark.parametrize("source", ["synthetic:x", "none.pth", "folder.onnx"])
def test_bad_sources_are_one_line(source: str) -> None:
    with pytest.raises(WeightsError, match=r"allowed (is|are)"):
        loaded(f"linear={source}", PLAIN)


@pytest.mark.parametrize("name", [name for name, spec in OFFICIAL_HEADS.items() if spec.is_dense])
def test_dense_heads_are_refused_on_registers(name: str) -> None:
    with pytest.raises(InputError, match="was trained on features of variants without registers"):
        loaded(f"{name}=synthetic:0", find_variant("dinov2_vits14_reg"))


def test_layers_and_addresses_are_the_official_ones() -> None:
    large, giant = find_variant("dinov2_vitl14"), find_variant("dinov2_vitg14_reg")
    assert OFFICIAL_HEADS["nyu-dpt"].layers_of(large) == (4, 11, 17, 23)
    assert OFFICIAL_HEADS["kitti-linear4"].layers_of(giant) == (9, 19, 29, 39)
    assert OFFICIAL_HEADS["kitti-linear"].layers_of(PLAIN) == (11,)
    assert OFFICIAL_HEADS["ade20k-ms"].layers_of(large) == (20, 21, 22, 23)
    base = "https://dl.fbaipublicfiles.com/dinov2"
    assert official_head_url(OFFICIAL_HEADS["linear4"], giant) == (
        f"{base}/dinov2_vitg14/dinov2_vitg14_reg4_linear4_head.pth"
    )
    assert official_head_url(OFFICIAL_HEADS["nyu-dpt"], large) == (
        f"{base}/dinov2_vitl14/dinov2_vitl14_nyu_dpt_head.pth"
    )
    with pytest.raises(InputError, match="12, 24 or 40 blocks"):
        OFFICIAL_HEADS["nyu-dpt"].layers_of(replace(PLAIN, depth=6))


def test_the_recipe_is_the_one_of_the_goldens() -> None:
    """Bytes of every tensor of every head on S at seed 0."""
    digest = hashlib.sha256()
    for name in OFFICIAL_HEADS:
        for key, value in sorted(state_of(name, PLAIN).items()):
            digest.update(key.encode() + value.numpy().tobytes())
    assert digest.hexdigest()[:16] == "daa8a81a35246ef9"


def test_class_tables_are_complete() -> None:
    assert len(class_table("imagenet1k").names) == 1000
    assert class_table("imagenet1k").names[207] == "golden retriever"
    for data, count in (("ade20k", 150), ("voc2012", 21)):
        table = class_table(data)
        assert len(table.names) == count
        assert table.palette is not None
        assert table.palette.shape == (count, 3)
    assert class_table("voc2012").names[20] == "tvmonitor"
    assert list(class_table("voc2012").palette[20]) == [0, 64, 128]  # type: ignore[index]


def test_a_classifier_of_ones_own_is_written_read_and_bound_to_its_backbone(tmp_path: Path) -> None:
    own = OwnClassifier(
        np.ones((3, 768), np.float32), np.zeros(3, np.float32), ("a", "b", "c"), 1, True,
        PLAIN.name, "0" * 64,
    )  # fmt: skip
    write_classifier(own, tmp_path / "c.npz")
    again = read_classifier(tmp_path / "c.npz")
    assert again.class_names == own.class_names
    np.testing.assert_array_equal(again.weight, own.weight)
    head = loaded(f"classifier={tmp_path / 'c.npz'}", PLAIN)
    assert head.entry.class_names == ("a", "b", "c")
    assert head.entry.layers == (11,)
    with pytest.raises(InputError, match="fitted on features of dinov2_vits14, not of"):
        loaded(f"classifier={tmp_path / 'c.npz'}", find_variant("dinov2_vits14_reg"))
    (tmp_path / "d.npz").write_bytes(b"no archive")
    with pytest.raises(WeightsError, match="is no classifier"):
        read_classifier(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_layers": "1"}, r"num_layers is '1'"),
        ({"num_layers": 10**9}, "num_layers is 1000000000"),
        ({"uses_mean": 1}, "uses_mean is 1"),
        ({"class_names": "abc"}, "class_names is no list of names"),
        ({"class_names": ["a", 2, "c"]}, "class_names is no list of names"),
        ({"class_names": []}, "0 classes"),
        ({"class_names": ["a"]}, "1 classes"),
        ({"format": "other"}, "another format"),
        ({"variant": None}, "variant is None"),
    ],
)
def test_facts_of_a_classifier_have_their_types(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    facts = {
        "format": FORMAT,
        "class_names": ["a", "b", "c"],
        "num_layers": 1,
        "uses_mean": True,
        "variant": PLAIN.name,
        "weights_sha256": "0" * 64,
    }
    weight, bias = np.ones((3, 768), np.float32), np.zeros(3, np.float32)
    np.savez(tmp_path / "c.npz", weight=weight, bias=bias, facts=json.dumps(facts | changed))
    with pytest.raises(WeightsError, match=f"is no classifier .*{message}"):
        read_classifier(tmp_path / "c.npz")


def test_a_classifier_that_is_not_finite_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    def own(bias: object) -> OwnClassifier:
        weight, floats = np.ones((3, 768), np.float32), np.array(bias, np.float32)
        return OwnClassifier(weight, floats, ("a", "b", "c"), 1, True, PLAIN.name, "0" * 64)

    write_classifier(own([0, np.nan, 0]), tmp_path / "c.npz")
    with pytest.raises(WeightsError, match="it holds NaN or infinity"):
        read_classifier(tmp_path / "c.npz")
    write_classifier(own([0, 0]), tmp_path / "d.npz")
    with pytest.raises(WeightsError, match=r"the classifier's bias is \[2\], must be \[3\]"):
        loaded(f"classifier={tmp_path / 'd.npz'}", PLAIN)
    write_classifier(replace(own([0] * 3), num_layers=13), tmp_path / "e.npz")
    with pytest.raises(WeightsError, match="reads 13 layers, and dinov2_vits14 has 12"):
        loaded(f"classifier={tmp_path / 'e.npz'}", PLAIN)


@pytest.mark.parametrize("values", [[1j] * 3, ["1"] * 3, [1e300] * 3, [1] * 3])
def test_numbers_of_a_head_are_floats_that_fit(values: list[object], tmp_path: Path) -> None:
    facts = json.dumps({"format": FORMAT})
    np.savez(tmp_path / "c.npz", weight=np.ones((3, 768)), bias=np.array(values), facts=facts)
    with pytest.raises(WeightsError, match=r"is no classifier .it holds "):
        read_classifier(tmp_path / "c.npz")


@pytest.mark.parametrize("read", [read_classifier, read_segmenter])
def test_an_archive_that_unpacks_to_more_than_is_read_is_refused(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinov2rt.bundle.tasks.head_file._MOST_BYTES", 10_000)
    np.savez_compressed(tmp_path / "c.npz", weight=np.zeros((100, 100), np.float32))
    with pytest.raises(WeightsError, match="more than 10000 bytes when unpacked"):
        read(tmp_path / "c.npz")


def test_a_segmentation_head_is_checked_as_a_classifier_is(tmp_path: Path) -> None:
    def write(facts: str, weight: float = 0.0) -> Path:
        arrays = {"weight": np.full((2, 4), weight, np.float32), "bias": np.zeros(2, np.float32)}
        np.savez(tmp_path / "s.npz", facts=np.array(facts), **arrays)
        return tmp_path / "s.npz"

    facts = (
        '{"format": "dinov2rt segmenter 1", "class_names": ["a", "b"], '
        '"palette": [[0, 0, 0], [1, 1, 1]], "variant": "dinov2_vits14", "weights_sha256": "0"}'
    )
    assert read_segmenter(write(facts)).class_names == ("a", "b")
    for wrong, message in (
        (facts.replace('"0"}', '"0", "variant": "x"}'), "twice|duplicate|more than once"),
        (facts.replace('"dinov2_vits14"', "14"), "variant is 14"),
        (facts.replace("segmenter 1", "segmenter 2"), "another format"),
    ):
        with pytest.raises(WeightsError, match=message):
            read_segmenter(write(wrong))
    with pytest.raises(WeightsError, match="NaN or infinity"):
        read_segmenter(write(facts, np.nan))
