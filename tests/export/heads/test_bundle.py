"""A whole bundle of a narrow backbone with heads: every precision, verified, and as a plan."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_cases import small_golden_cases

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.golden import Golden
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import Variant
from dinov2rt.engines.build import build_plan
from dinov2rt.engines.options import BuildOptions
from dinov2rt.engines.triton.repository import RepositoryOptions, plan_repository
from dinov2rt.export.eager_check import eager_cases
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.heads.checkpoint import HeadSource
from dinov2rt.runtime.model import load

HEADS = ("linear", "nyu-linear4", "voc2012-ms")
OUTPUTS = {"logits", "depth", "segmentation"}


@contextmanager
def exported(narrow: Variant, folder: Path, *names: str) -> Iterator[Path]:
    heads = tuple(HeadSource(name, "synthetic:0") for name in names)
    with small_golden_cases():
        export_bundle(narrow, "synthetic:0", folder, ExportOptions(heads=heads, attention=True))
        yield folder


@pytest.fixture(scope="module")
def bundle(narrow: Variant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with exported(narrow, tmp_path_factory.mktemp("bundles") / "narrow", *HEADS) as folder:
        yield folder


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_every_precision_holds_limits_that_mean_something(
    bundle: Path, precision: Precision
) -> None:
    with load(bundle, device="cpu", backend="onnxruntime", precision=precision) as model:
        report = model.verify()
    assert report, report
    assert {task.output for task in report.tasks} >= OUTPUTS
    limits = next(g for g in Manifest.read(bundle).graphs if g.precision is precision).task_limits
    is_half = precision is Precision.FP16
    pooled = ["attention", "logits"] if is_half else ["attention"]
    for output in ("logits", "attention", "depth", "segmentation_scores"):
        most = 0.02 if is_half else 4e-5 if output == "attention" else 1e-5
        held, other = limits[output].relative_l2, limits[output].pooled_l2
        if output in pooled:
            held, other = other, held
        assert 1e-5 <= held <= most, output
        assert other is None, output
    assert sorted(task.output for task in report.tasks if task.case == "all") == pooled
    for output in ("logits", "segmentation"):
        assert limits[output].margin is not None
        assert limits[output].margin < 1


def test_one_image_may_be_off_by_twice_the_limits_over_all(bundle: Path) -> None:
    (case, *_) = (each for each in Golden.read(bundle / "golden.npz").cases if len(each.images) < 4)
    with load(bundle, device="cpu", backend="onnxruntime", precision="fp16") as model:
        stored, tasks = model.graph.limits, model.graph.task_limits
        report = model.verify([case])
        assert report
        assert report.limits == replace(stored, pooled_l2=2 * stored.pooled_l2)
        (logits,) = (each for each in report.tasks if (each.case, each.output) == ("all", "logits"))
        assert logits.limits.relative_l2 == 2 * tasks["logits"].pooled_l2
        assert model.verify([case] * 4).limits == stored


@pytest.mark.parametrize("output", ["attention", "logits"])
def test_half_precision_with_a_false_vector_fails(bundle: Path, output: str) -> None:
    """Heads, or classes, in another order: of one image, and NaN."""
    cases = Golden.read(bundle / "golden.npz").cases
    with load(bundle, device="cpu", backend="onnxruntime", precision="fp16") as model:
        for spoil in (lambda value: value[:, ::-1].copy(), lambda value: value * np.nan):
            spoilt = replace(cases[0], outputs={**cases[0].outputs})
            spoilt.outputs[output] = spoil(spoilt.outputs[output])  # type: ignore[index]
            report = model.verify([spoilt, *cases[1:]])
            failed = {(task.case, task.output) for task in report.tasks if not task.passed}
            assert ("all", output) in failed
            assert {name for _, name in failed} == {output}
            assert f"{output} at all: relative L2" in str(report)
            assert "(allowed: relative L2 0.0" in str(report)


@pytest.mark.parametrize("output", sorted(OUTPUTS))
def test_a_false_answer_fails(bundle: Path, output: str) -> None:
    (case, *_) = Golden.read(bundle / "golden.npz").cases
    wrong = case.outputs[output]
    if wrong.dtype == np.uint8:
        wrong[:, ::7] = (wrong[:, ::7] + 1) % 21
    else:
        wrong *= 1.001
    with load(bundle, device="cpu", backend="openvino") as model:
        report = model.verify([case])
    assert not report
    assert [task.output for task in report.tasks if not task.passed] == [output]
    assert output in str(report)


@pytest.mark.parametrize(
    ("precision", "backend"),
    [(Precision.FP32, "openvino"), (Precision.FP16, "onnxruntime")],
)
def test_verify_eager_covers_heads(bundle: Path, precision: Precision, backend: str) -> None:
    manifest = Manifest.read(bundle)
    graph = next(graph for graph in manifest.graphs if graph.precision is precision)
    # The error of depth on six patches varies more than the limit of two small golden cases knows.
    cases = eager_cases(manifest, graph, sizes=[ImageSize(98, 126)])
    with load(bundle, device="cpu", backend=backend, precision=precision) as model:  # type: ignore[arg-type]
        report = model.verify(cases)
    assert report, report
    assert {task.output for task in report.tasks} >= OUTPUTS


def test_dense_heads_leave_no_captured_graph(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert manifest.cuda_graph is None
    assert all(graph.pads for graph in manifest.graphs)
    with load(bundle) as model:
        said = model.describe()
    assert "dense heads (nyu-linear4, voc2012-ms) compute with the image's size, which a" in said


@pytest.mark.slow
def test_a_plan_is_built_with_proven_fusion(narrow: Variant, tmp_path: Path, trt: Any) -> None:
    options = BuildOptions(target="sm80", flavour="tensorrt-rtx", max_batch=2, max_size=224)
    with exported(narrow, tmp_path / "narrow", *HEADS, "kitti-dpt") as bundle:
        plan = build_plan(bundle, options)
        assert load(bundle, device="cpu", backend="onnxruntime", precision="fp16").verify()
    assert plan.fused_attention == 12
    outputs = {"logits", "depth_nyu_linear4", "depth_kitti_dpt", "segmentation", "attention"}
    assert set(plan.outputs) >= outputs
    assert trt


def test_triton_is_told_of_every_answer(bundle: Path) -> None:
    repository = plan_repository(bundle, RepositoryOptions())
    for model in repository.models:
        for output in OUTPUTS:
            assert f'name: "{output}"' in model.config, model.name
        assert "TYPE_UINT8" in model.config.partition("output {")[2]
