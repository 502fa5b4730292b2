"""Real builds for the A100, on a machine without a GPU."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinov2rt.bundle.entries import Flavour, PlanEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import find_variant, variants
from dinov2rt.engines import flavours
from dinov2rt.engines.build import build_plan
from dinov2rt.engines.options import BuildOptions
from dinov2rt.errors import BackendError, BuildError, BundleError, FusionError, InputError
from dinov2rt.runtime.gpu.cuda import Gpu

pytestmark = pytest.mark.usefixtures("trt")

RTX = BuildOptions(flavour="tensorrt-rtx")
SMALL = dataclasses.replace(RTX, profiles="224", max_batch=2)
MIB = 2**20


@pytest.fixture(scope="module")
def plan_s_reg(bundle_s_reg: Path, tmp_path_factory: pytest.TempPathFactory) -> PlanEntry:
    """The plan of ViT-S with registers, all defaults."""
    return _build_in_copy(bundle_s_reg, tmp_path_factory)


@pytest.fixture(scope="module")
def plan_s(bundle_s: Path, tmp_path_factory: pytest.TempPathFactory) -> PlanEntry:
    """The plan of ViT-S without registers, all defaults."""
    return _build_in_copy(bundle_s, tmp_path_factory)


def _build_in_copy(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> PlanEntry:
    copy = tmp_path_factory.mktemp("plans") / bundle.name
    copy.mkdir()
    for file in bundle.iterdir():
        (copy / file.name).hardlink_to(file)
    (copy / "manifest.json").unlink()
    Manifest.read(bundle).write(copy)
    entry = build_plan(copy, RTX)
    assert Manifest.read(copy).plans == (entry,)
    entry.file.check(copy, rebuild="")
    return entry


@pytest.mark.parametrize(
    ("plan", "outputs"),
    [
        ("plan_s", ("cls_token", "patch_tokens")),
        ("plan_s_reg", ("cls_token", "register_tokens", "patch_tokens")),
    ],
)
def test_s_builds_for_the_a100_without_a_gpu(
    plan: str, outputs: tuple[str, ...], trt: Any, request: pytest.FixtureRequest
) -> None:
    entry: PlanEntry = request.getfixturevalue(plan)
    assert (entry.flavour, entry.version) == (Flavour.TENSORRT_RTX, trt.__version__)
    assert (entry.target, entry.precision) == ("sm80", Precision.FP16)
    assert (entry.input_name, entry.outputs) == ("pixels", outputs)
    assert [profile.name for profile in entry.profiles] == ["224", "518", "wide"]
    assert entry.fused_attention == 12
    assert entry.verification is None
    name = f"plans/sm80-tensorrt_rtx-{trt.__version__}-fp16-{entry.file.sha256[:12]}.plan"
    assert entry.file.path == name
    # 22 million weights, all but a few in two bytes
    assert 40 * MIB < entry.weight_bytes < 50 * MIB
    assert entry.build_seconds > 0


def test_the_plan_says_which_graph_it_came_from(plan_s_reg: PlanEntry, bundle_s_reg: Path) -> None:
    graph = (bundle_s_reg / "fp16.onnx").read_bytes()
    assert plan_s_reg.graph_sha256 == hashlib.sha256(graph).hexdigest()


def test_scratch_memory_grows_linearly_with_the_number_of_tokens(plan_s_reg: PlanEntry) -> None:
    """Scores of unfused attention would take 32 x 6 x tokens² x 2 bytes, 10 GiB at 1036 pixels."""
    num_prefix_tokens = find_variant("dinov2_vits14_reg").num_prefix_tokens
    per_token = []
    for profile in plan_s_reg.profiles:
        largest = profile.shapes.max
        tokens = largest.batch * (largest.size.grid(14).num_patches + num_prefix_tokens)
        per_token.append(profile.scratch_bytes / tokens)
    # 261, 1374 and 5481 tokens an image
    assert max(per_token) < 1.1 * min(per_token)


def test_building_again_replaces_the_plan_and_records_the_options(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path], trt: Any
) -> None:
    bundle = copy_of(bundle_s_reg)
    said: list[str] = []
    refused = bundle / "plans" / f"sm80-tensorrt_rtx-{trt.__version__}-fp16.refused.txt"
    refused.parent.mkdir()
    refused.touch()
    first = build_plan(bundle, SMALL, said.append)
    assert not refused.exists(), "it is out of date"
    assert any("building 1 profiles for sm80 with tensorrt_rtx" in line for line in said)
    options = dataclasses.replace(SMALL, weight_streaming=True, optimization_level=0)
    content = (bundle / first.file.path).read_bytes()
    with pytest.raises(
        InputError, match=r"holds a fp16 plan of .* for sm80 already, with .*--force"
    ):
        build_plan(bundle, dataclasses.replace(options, target="A100"))
    assert (bundle / first.file.path).read_bytes() == content
    assert Manifest.read(bundle).plans == (first,)
    second = build_plan(bundle, dataclasses.replace(options, target="8.0"), force=True)
    assert Manifest.read(bundle).plans == (second,)
    assert [file.name for file in (bundle / "plans").glob("*.plan")] == [
        Path(second.file.path).name
    ], "the plan that was replaced is gone"
    assert second.options == {"weight_streaming": "true", "optimization_level": "0"}


def test_float32_attention_fails_the_fusion_proof_and_leaves_the_bundle_as_it_was(
    edited: Callable[..., Path], float_attention: Callable[..., Any]
) -> None:
    bundle = edited(float_attention(*range(12)))
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(FusionError, match=r"12 blocks \(blocks\.0, .*\) multiply in fp16, fp32"):
        build_plan(bundle, SMALL)
    assert (bundle / "manifest.json").read_bytes() == before
    assert not (bundle / "plans").exists()


@pytest.mark.parametrize(
    ("max_batch", "message"),
    [
        (2, "no fused kernel for the attention of a block among 12 blocks"),
        # With a static shape the builder decomposes attention without an error; only the list of
        # kernels shows it.
        (1, r"profile 224 does not have exactly one fused attention kernel in 12 blocks \(blocks"),
    ],
)
def test_a_graph_for_which_the_builder_has_no_fused_kernel_fails(
    max_batch: int, message: str, bundle_s_reg: Path, copy_of: Callable[[Path], Path], trt: Any
) -> None:
    """A float32 graph is labelled correctly, but the builder has no fused kernel for it."""
    bundle = copy_of(bundle_s_reg)
    options = dataclasses.replace(SMALL, max_batch=max_batch, precision=Precision.FP32)
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(FusionError, match=message) as refused:
        build_plan(bundle, options)
    assert (bundle / "manifest.json").read_bytes() == before
    (evidence,) = (bundle / "plans").iterdir()
    assert evidence.name == f"sm80-tensorrt_rtx-{trt.__version__}-fp32.refused.txt"
    assert str(refused.value).endswith(f"; the builder's log is in {evidence}")
    reason, *said = evidence.read_text().splitlines()
    assert str(refused.value).startswith(reason)
    assert any("blocks.0/" in line for line in said)
    assert ("Layers:" in said) == (max_batch == 1), "only then was a plan built"


def test_a_log_that_cannot_be_saved_does_not_hide_the_reason(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = copy_of(bundle_s_reg)
    (bundle / "plans").touch()  # no folder can be made there
    options = dataclasses.replace(SMALL, max_batch=1, precision=Precision.FP32)
    with pytest.raises(FusionError, match=r"the plan is rejected$"):
        build_plan(bundle, options)


def test_a_profile_over_the_memory_limit_is_refused_with_both_figures(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = copy_of(bundle_s_reg)
    with pytest.raises(BuildError, match=r"profile 224 needs .* MiB .*, the limit is 1 MiB;"):
        build_plan(bundle, dataclasses.replace(SMALL, memory_limit_mib=1))
    assert not (bundle / "plans").exists()


def test_altered_weights_are_refused_before_they_are_parsed(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = copy_of(bundle_s_reg)
    with (bundle / "fp16.onnx.data").open("r+b") as stream:
        stream.write(b"\xff" * 16)
    with pytest.raises(
        BundleError, match=r"fp16\.onnx\.data has SHA-256 .* rebuild with: dinov2rt"
    ):
        build_plan(bundle, SMALL)


def test_a_bundle_without_the_graph_says_what_it_has(bundle_s_reg: Path) -> None:
    with pytest.raises(BundleError, match="holds no bf16 graph, only fp32, fp16; rebuild with"):
        build_plan(bundle_s_reg, dataclasses.replace(SMALL, precision=Precision.BF16))


def test_what_cannot_be_built_is_refused_before_anything_is_read(bundle_s_reg: Path) -> None:
    for options in (
        dataclasses.replace(SMALL, target="sm90"),
        dataclasses.replace(SMALL, version_compatible=True),
    ):
        said: list[str] = []
        with pytest.raises(InputError):
            build_plan(bundle_s_reg, options, said.append)
        assert said == []


def test_on_a_gpu_that_rtx_does_not_support_only_targets_by_name_are_built(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    h100 = Gpu(0, "NVIDIA H100 80GB HBM3", "sm90", "580.159.04", (13, 0))
    monkeypatch.setattr(flavours, "find_gpu", lambda: h100)
    bundle = copy_of(bundle_s_reg)
    said: list[str] = []
    with pytest.raises(BackendError, match=r"has compute capability 9\.0, plans of .* run on 8\.0"):
        build_plan(bundle, dataclasses.replace(SMALL, target="current"), said.append)
    assert said == []
    assert build_plan(bundle, SMALL).target == "sm80"


@pytest.mark.slow
@pytest.mark.parametrize("name", [variant.name for variant in variants()])
def test_every_variant_builds(name: str, tmp_path: Path) -> None:
    from dinov2rt.export.exporter import ExportOptions, export_bundle

    variant = find_variant(name)
    export_bundle(variant, "synthetic:0", tmp_path / name, ExportOptions())
    entry = build_plan(tmp_path / name, RTX)
    assert entry.fused_attention == variant.depth
