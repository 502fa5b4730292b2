"""Heads on a backbone in int8: they stay float32, and hold limits of their own."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.small_cases import small_golden_cases

from dinov2rt.bundle.golden import Golden
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import Variant
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.heads.checkpoint import HeadSource
from dinov2rt.export.int8.products import product_names
from dinov2rt.runtime.backends import openvino
from dinov2rt.runtime.model import load


@pytest.fixture
def any_cpu_runs_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VNNI, OpenVINO runs int8 graphs slowly, and some of their products overflow.

    The search leaves such products in float32, as it does with all that harm too much.
    """
    if not openvino.is_x86():
        pytest.skip("int8 is for x86")
    cpu = openvino.this_cpu()
    with_vnni = dataclasses.replace(
        cpu, instruction_sets=(*cpu.instruction_sets, "AVX-512 VNNI"), instruction_sets_known=True
    )
    monkeypatch.setattr(openvino, "this_cpu", lambda: with_vnni)


@pytest.mark.usefixtures("any_cpu_runs_int8")
def test_heads_answer_on_an_int8_backbone_within_their_limits(
    toy_variant: Callable[[str], Variant], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    heads = HeadSource.parse_all(
        "linear=synthetic:0,nyu-linear=synthetic:0,ade20k-linear=synthetic:0"
    )
    precisions = (Precision.FP32, Precision.INT8)
    options = ExportOptions(precisions=precisions, heads=heads, attention=True)
    with small_golden_cases():
        export_bundle(toy_variant("dinov2_vits14"), "synthetic:0", bundle, options)
    graph = Manifest.read(bundle).graph_in(Precision.INT8)
    assert graph is not None
    assert graph.quantization is not None
    assert len(graph.quantization.float32) < len(product_names(toy_variant("dinov2_vits14")))
    answers = {"logits", "depth", "segmentation", "segmentation_scores"}
    assert set(graph.task_limits) == {"attention", *answers}

    pixels = np.random.default_rng(0).integers(0, 256, (1, 56, 75, 3), dtype=np.uint8)
    with (
        load(bundle, device="cpu", backend="openvino", precision="int8") as model,
        load(bundle, device="cpu", backend="openvino", precision="fp32") as exact,
    ):
        report = model.verify()
        (first, *others) = Golden.read(bundle / "golden.npz").cases
        swapped = {**first.outputs, "attention": first.outputs["attention"][:, ::-1]}
        of_swapped_heads = model.verify([dataclasses.replace(first, outputs=swapped), *others])
        got, want = model.predict(pixels), exact.predict(pixels)
    assert report, report
    assert {task.output for task in of_swapped_heads.tasks if not task.passed} == {"attention"}
    assert {task.output for task in report.tasks} == set(graph.task_limits)
    assert got["ade20k-linear"].classes.shape == (1, 56, 75)
    error = np.linalg.norm(got["linear"].logits - want["linear"].logits)
    assert 1e-4 < error / np.linalg.norm(want["linear"].logits) < 0.1  # int8, and near
