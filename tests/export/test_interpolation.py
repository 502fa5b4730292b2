"""The position table as transformers and timm resample it: `export --interpolation source`."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import FileEntry
from dinov2rt.bundle.golden import Golden
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.normalization import Normalization
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import Variant, find_variant
from dinov2rt.errors import BundleError, WeightsError
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.weights.architecture import Stated, as_of_library
from dinov2rt.export.weights.checkpoint import load_weights
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.model import load

SIZES = ((224, 224), (98, 154), (518, 518), (266, 392))
OF_TIMM: dict[str, Any] = {"architecture": "vit_small_patch14_dinov2", "pretrained_cfg": {}}
FP32 = (Precision.FP32,)
SOURCE = Stated(follows_source=True)


def timm_folder(folder: Path, architecture: Architecture) -> Path:
    state = synthetic_state_dict(architecture, 0)
    del state["mask_token"]
    if architecture.num_registers:
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(OF_TIMM))
    return folder


@pytest.mark.parametrize(
    ("name", "library", "antialias"),
    [
        ("dinov2_vits14", "transformers", False),
        ("dinov2_vits14_reg", "transformers", True),
        ("dinov2_vits14", "timm", True),
        ("dinov2_vits14_reg", "timm", True),
    ],
)
def test_what_each_library_does(
    toy_variant: Callable[[str], Variant], name: str, library: str, antialias: bool
) -> None:
    found = as_of_library(toy_variant(name).architecture, library)
    assert found is not None
    assert (found.antialias, found.offset) == (antialias, 0.0)
    assert as_of_library(toy_variant(name).architecture, None) is None


def test_the_difference_is_said_and_the_source_followed_on_request(
    toy_variant: Callable[[str], Variant], tmp_path: Path
) -> None:
    architecture = toy_variant("dinov2_vits14").architecture
    folder, said = timm_folder(tmp_path, architecture), list[str]()
    options = ExportOptions(precisions=FP32)
    manifest = export_bundle(None, str(folder), tmp_path / "a", options, progress=said.append)
    assert manifest.architecture == architecture
    (line,) = (each for each in said if each.startswith("positions"))
    found = re.search(r"timm resamples otherwise: at 224x224 patch tokens differ by (\S+)", line)
    assert found is not None
    assert 1e-3 < float(found[1]) < 1

    followed = load_weights(str(folder), None, None, SOURCE).architecture
    assert followed == dataclasses.replace(architecture, antialias=True, offset=0.0)


def test_nothing_to_follow_is_refused(
    toy_variant: Callable[[str], Variant], tmp_path: Path
) -> None:
    folder = timm_folder(tmp_path, toy_variant("dinov2_vits14").architecture)
    with pytest.raises(WeightsError, match="states --antialias and --offset; leave them out"):
        load_weights(str(folder), None, None, Stated(antialias=True, follows_source=True))
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="nothing tells whose interpolation to follow"):
        load_weights(str(folder), None, None, SOURCE)
    with pytest.raises(WeightsError, match="have no source to follow"):
        load_weights("synthetic:0", toy_variant("dinov2_vits14"), None, SOURCE)


def test_golden_outputs_of_other_statistics_are_refused(pooling_bundle: Path) -> None:
    manifest = Manifest.read(pooling_bundle)
    golden = Golden.read(pooling_bundle / "golden.npz")
    halves = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for normalization, is_refused in ((manifest.normalization, False), (halves, True)):
        Golden(golden.cases, normalization).write(pooling_bundle / "golden.npz")
        entry = FileEntry.of(pooling_bundle, "golden.npz")
        dataclasses.replace(manifest, golden=entry).write(pooling_bundle)
        assert Golden.read(pooling_bundle / "golden.npz").normalization == normalization
        with load(pooling_bundle, device="cpu") as model:
            if not is_refused:
                assert model.verify()
                continue
            with pytest.raises(BundleError, match=r"were made with mean 0.5, 0.5, 0.5 and std"):
                model.verify()


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def tokens_of_transformers(folder: Path, architecture: Architecture) -> Callable[..., Any]:
    from dinov2rt.benchmarks.peers.transformers import huggingface_model

    model = huggingface_model(architecture, synthetic_state_dict(architecture, 0))
    model.save_pretrained(folder)
    return lambda images: model(pixel_values=images).last_hidden_state


def tokens_of_timm(folder: Path, architecture: Architecture) -> Callable[..., Any]:
    timm = pytest.importorskip("timm")
    name = (
        "vit_small_patch14_reg4_dinov2" if architecture.num_registers else OF_TIMM["architecture"]
    )
    model = timm.create_model(name, dynamic_img_size=True)
    timm_folder(folder, architecture)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model.eval().forward_features


@pytest.mark.slow
@pytest.mark.parametrize("make", [tokens_of_transformers, tokens_of_timm])
@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_it_is_exactly_that_of_the_library(
    name: str, make: Callable[..., Callable[..., Any]], tmp_path: Path
) -> None:
    architecture = find_variant(name).architecture
    source = tmp_path / "source"
    source.mkdir()
    library = make(source, architecture)
    options = ExportOptions(precisions=FP32, stated=SOURCE)
    manifest = export_bundle(None, str(source), tmp_path / "bundle", options)
    rng = np.random.default_rng(0)
    with load(tmp_path / "bundle", device="cpu", precision="fp32") as model:
        for height, width in SIZES:
            pixels = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
            with torch.inference_mode():
                want = library(torch.from_numpy(manifest.normalization(pixels))).numpy()
            got = model(pixels).outputs
            first_patch = architecture.num_prefix_tokens
            assert relative_l2(got["cls_token"], want[:, 0]) < 1e-5
            assert relative_l2(got["patch_tokens"], want[:, first_patch:]) < 1e-5
