"""Candidates for bundles with heads, beside the eager heads of this project."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_cases import small_golden_cases

from dinov2rt.benchmarks.harness.accuracy_check import check_heads, task_limits_for
from dinov2rt.benchmarks.harness.graph_flops import head_flops, head_work
from dinov2rt.benchmarks.harness.photo_batch import photo_batch
from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.peers.candidates import find
from dinov2rt.benchmarks.peers.transformers_heads import HuggingFaceHead
from dinov2rt.bundle.geometry import Grid, ImageSize
from dinov2rt.bundle.limits import TaskLimits
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import BundleError
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.heads.answers import head_answers
from dinov2rt.export.heads.checkpoint import HeadSource, load_heads
from dinov2rt.export.model import load_eager
from dinov2rt.export.weights.synthetic import synthetic_state_dict

Export = Callable[[str, str], Workload]
HEADS = ("linear", "nyu-linear", "voc2012-linear")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A bundle of a variant with heads, as a candidate gets it."""

    def export(variant: str, heads: str) -> Workload:
        bundle = tmp_path_factory.mktemp("bundles") / "bundle"
        options = ExportOptions(
            precisions=(Precision.FP32,),
            heads=HeadSource.parse_all(heads.replace("*", "=synthetic:0")),
        )
        with small_golden_cases():
            export_bundle(find_variant(variant), "synthetic:0", bundle, options)
        return Workload(bundle, "cpu", threads=1)

    return export


def answers(name: str, workload: Workload, pixels: np.ndarray) -> Mapping[str, np.ndarray]:
    (candidate,) = find([name])
    assert candidate.cannot_run(workload) is None
    runner = candidate.open(workload)
    try:
        return {key: np.array(value) for key, value in
                runner.outputs(runner.run(runner.prepare(pixels))).items()}  # fmt: skip
    finally:
        runner.close()


def error(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("size", [ImageSize(56, 98), ImageSize(73, 31)])
def test_a_bundle_with_heads_is_measured_by_its_answers(
    bundle_heads: Path, size: ImageSize
) -> None:
    workload, pixels = Workload(bundle_heads, "cpu", threads=1), photo_batch(2, size)
    eager = answers("eager", workload, pixels)
    assert tuple(eager) == workload.outputs
    ours = answers("dinov2rt-onnxruntime-fp32", workload, pixels)
    assert {f"{name}_scores" for name in ours if name.startswith("segm")} | {*ours} == {*eager}
    limits = task_limits_for(workload.manifest, Precision.FP32)
    accuracy = check_heads(ours, eager, limits)
    assert accuracy.passed, accuracy
    assert accuracy.relative_l2 is not None
    assert accuracy.relative_l2 < 1e-5
    wrong = {**ours, "depth_nyu_linear": ours["depth_nyu_linear"] * 1.001}
    assert not check_heads(wrong, eager, limits).passed
    with pytest.raises(BundleError, match="no limits of its heads for fp16"):
        task_limits_for(workload.manifest, Precision.FP16)


@pytest.mark.parametrize(("batch", "most"), [(1, 0.2), (3, 0.2), (4, 0.1)])
def test_few_images_may_be_off_by_twice_the_limit_of_several(batch: int, most: float) -> None:
    want = np.ones((batch, 10), np.float32)
    limits = {"logits": TaskLimits(pooled_l2=0.1)}
    for factor, passes in ((0.99, True), (1.01, False)):
        got = want * np.float32(1 + factor * most)
        assert check_heads({"logits": got}, {"logits": want}, limits).passed is passes


def test_transformers_is_not_measured_with_heads_that_it_lacks(bundle_heads: Path) -> None:
    (candidate,) = find(["transformers"])
    reason = candidate.cannot_run(Workload(bundle_heads, "cpu", threads=1))
    assert reason is not None
    assert "it has one for each of linear, nyu-dpt, kitti-dpt" in reason


@pytest.mark.parametrize(
    ("variant", "name", "output"),
    [
        ("dinov2_vits14", "linear", "logits"),
        ("dinov2_vits14_reg", "linear", "logits"),
        ("dinov2_vits14", "kitti-dpt", "depth"),
    ],
)
def test_transformers_has_the_same_heads(variant: str, name: str, output: str) -> None:
    """On a narrow backbone at its native grid, where no positions are resampled."""
    narrow = dataclasses.replace(
        find_variant(variant).architecture,
        embed_dim=64,
        num_heads=2,
        hidden_dim=128,
        native_grid=Grid(5, 5),
    )
    weights = synthetic_state_dict(narrow, 0)
    eager = load_eager(narrow, weights)
    eager.task_heads = load_heads(HeadSource.parse_all(f"{name}=synthetic:0"), narrow)
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = head_answers(eager, images, (70, 70))[output]
        (got,) = HuggingFaceHead(narrow, weights, eager.task_heads[0])(images)
    assert error(got.numpy(), want.numpy()) < 1e-6


@pytest.mark.slow  # exports, and the native size, where transformers resamples no positions
@pytest.mark.parametrize(
    ("variant", "head", "output"),
    [
        ("dinov2_vits14", "linear", "logits"),
        ("dinov2_vits14_reg", "linear", "logits"),
        ("dinov2_vits14", "nyu-dpt", "depth"),
    ],
)
def test_transformers_computes_the_same(
    exported: Export, variant: str, head: str, output: str
) -> None:
    workload, pixels = exported(variant, f"{head}*"), photo_batch(1, ImageSize(518, 518))
    eager = answers("eager", workload, pixels)
    assert error(answers("transformers", workload, pixels)[output], eager[output]) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize("name", ["compile", "onnxruntime", "openvino"])
def test_other_peers_answer_as_the_eager_heads(exported: Export, name: str) -> None:
    workload, pixels = exported("dinov2_vits14", ",".join(f"{head}*" for head in HEADS)), None
    pixels = photo_batch(2, ImageSize(73, 31))
    eager, found = answers("eager", workload, pixels), answers(name, workload, pixels)
    assert check_heads(found, eager, task_limits_for(workload.manifest, Precision.FP32)).passed


def test_the_work_of_heads_is_counted(bundle_heads: Path) -> None:
    """The official heads' own work is far below it for DPT, and this bundle has two of them."""
    small, large = (
        head_flops(bundle_heads / "fp32.onnx", photo_batch(1, ImageSize(side, side)))
        for side in (56, 112)
    )
    assert 2e9 < small < large < 4.5 * small


def test_the_work_of_a_call_has_the_padded_size_and_all_answers(bundle_heads: Path) -> None:
    pixels = photo_batch(2, ImageSize(50, 56))
    answers_ = {
        name: np.zeros((2, 50, 56), np.uint8) for name in Workload(bundle_heads, "cpu", 1).outputs
    }
    work = head_work(bundle_heads, pixels, answers_)
    assert work is not None
    assert work.size == ImageSize(56, 56)
    assert work.output_bytes == 2 * 50 * 56 * len(Manifest.read(bundle_heads).heads)
    one = head_flops(bundle_heads / "fp32.onnx", photo_batch(1, work.size))
    assert work.flops == pytest.approx(2 * one, rel=0.05)  # the image itself has fewer rows
