from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dinov2rt.bundle.accuracy import AccuracyReport, OutputAccuracy
from dinov2rt.bundle.entries import FileEntry, Flavour, PlanEntry, VerificationEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.limits import Limits
from dinov2rt.bundle.manifest import Manifest, graph_of, rebuild_command
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.profiles import ProfileEntry, ShapeRange
from dinov2rt.errors import BackendError
from dinov2rt.runtime.gpu.cuda import Gpu
from dinov2rt.runtime.tensorrt.flavour import cannot_run_on
from dinov2rt.runtime.tensorrt.plan_checks import Machine, check_runs
from dinov2rt.runtime.verification import record_verification, why_unverified

PLAN = PlanEntry(
    file=FileEntry("plans/a.plan", 10, "0" * 64),
    flavour=Flavour.TENSORRT,
    version="11.4.0.106",
    target="sm80",
    precision=Precision.FP16,
    input_name="pixels",
    outputs=("cls_token", "patch_tokens"),
    profiles=(ProfileEntry("224", ShapeRange.pinned(ImageSize(224, 224), 8), 1024),),
    fused_attention=12,
    weight_bytes=1,
    build_seconds=1.0,
    graph_sha256="1" * 64,
)
A100 = Gpu(0, "NVIDIA A100-SXM4-80GB", "sm80", "580.65.06", (13, 0))
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "sm90", "580.159.04", (13, 0))
HERE = Machine(A100, (Flavour.TENSORRT,), "11.4.0.106", (13, 0))
REBUILD = rebuild_command(Path("b"), PLAN)


def refusal(plan: PlanEntry, machine: Machine) -> str:
    with pytest.raises(BackendError) as error:
        check_runs(plan, machine, REBUILD)
    return str(error.value)


def test_a_plan_runs_on_the_machine_it_was_built_for() -> None:
    check_runs(PLAN, HERE, REBUILD)


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (
            replace(HERE, version="11.4.1.2"),
            "its TensorRT version is 11.4.0.106, this machine's is 11.4.1.2",
        ),
        (
            replace(HERE, version=None, flavours=(Flavour.TENSORRT_RTX,)),
            "its TensorRT flavour is tensorrt, this machine's is tensorrt_rtx",
        ),
        (
            replace(HERE, version=None, flavours=()),
            "its TensorRT flavour is tensorrt, this machine's is none",
        ),
        (
            replace(HERE, gpu=replace(A100, target="sm90", name="NVIDIA H200")),
            "its compute capability is sm80, this machine's is sm90 (NVIDIA H200)",
        ),
    ],
)
def test_a_mismatch_names_the_field_both_values_and_the_command(
    machine: Machine, says: str
) -> None:
    assert refusal(PLAN, machine) == (
        f"plans/a.plan: {says}; rebuild with: dinov2rt build b --target sm80 --force"
    )


def test_a_driver_that_is_too_old_must_be_updated() -> None:
    machine = replace(HERE, gpu=replace(A100, driver="570.10", cuda=(12, 8)))
    assert refusal(PLAN, machine) == (
        "plans/a.plan: its driver is one for CUDA 13.0, this machine's is 570.10 for CUDA 12.8; "
        "update the driver; a rebuilt plan would need the same"
    )


def test_a_plan_runs_with_a_newer_driver() -> None:
    check_runs(PLAN, replace(HERE, gpu=replace(A100, cuda=(14, 1))), REBUILD)


@pytest.mark.parametrize(
    ("version", "runs"),
    [("11.4.0.106", True), ("11.5.0.1", True), ("11.3.9.9", False), ("12.0.0.1", False)],
)
def test_a_version_compatible_plan_runs_with_later_versions_of_the_same_major(
    version: str, runs: bool
) -> None:
    plan = replace(PLAN, options={"version_compatible": "true"})
    machine = replace(HERE, version=version)
    if runs:
        check_runs(plan, machine, REBUILD)
    else:
        assert f"TensorRT version is 11.4.0.106, this machine's is {version}" in refusal(
            plan, machine
        )


@pytest.mark.parametrize(("target", "runs"), [("sm75", False), ("sm86", True), ("sm120", True)])
def test_an_ampere_plus_plan_runs_from_ampere_on(target: str, runs: bool) -> None:
    plan = replace(PLAN, options={"hardware_compatible": "ampere-plus"})
    machine = replace(HERE, gpu=replace(A100, target=target))
    if runs:
        check_runs(plan, machine, REBUILD)
    else:
        assert "compute capability is sm80, this machine's is sm75" in refusal(plan, machine)


def test_an_open_plan_leaves_the_gpu_to_tensorrt() -> None:
    machine = replace(HERE, gpu=replace(A100, target="sm121"))
    check_runs(replace(PLAN, target="open"), machine, REBUILD)


@pytest.mark.parametrize("target", ["open", "sm80", "sm90"])
@pytest.mark.parametrize(
    "here", [{}, {"version": "1.6"}, {"version": None, "flavours": ()}, {"needed_cuda": (14, 0)}]
)
def test_a_gpu_that_rtx_does_not_support_is_the_first_reason(
    target: str, here: dict[str, Any]
) -> None:
    plan = replace(PLAN, flavour=Flavour.TENSORRT_RTX, version="1.7.1.116", target=target)
    machine = Machine(H100, (Flavour.TENSORRT_RTX,), "1.7.1.116", (13, 0))
    reason = cannot_run_on(Flavour.TENSORRT_RTX, H100.name, H100.target)
    assert refusal(plan, replace(machine, **here)) == f"plans/a.plan: {reason}"


def test_the_other_flavour_runs_on_hopper() -> None:
    check_runs(replace(PLAN, target="sm90"), replace(HERE, gpu=H100), REBUILD)


def test_a_bundle_path_with_a_space_is_quoted_in_the_command() -> None:
    command = rebuild_command(Path("my bundle"), PLAN, "sm90")
    assert command == "rebuild with: dinov2rt build 'my bundle' --target sm90"


def test_a_plan_belongs_to_the_graph_that_it_was_built_from(pooling_bundle: Path) -> None:
    manifest = Manifest.read(pooling_bundle)
    (graph,) = manifest.graphs
    own = replace(PLAN, graph_sha256=graph.files[0].sha256)
    assert graph_of(manifest, own, REBUILD) is graph
    with pytest.raises(BackendError) as error:
        graph_of(manifest, PLAN, REBUILD)
    assert str(error.value) == (
        f"plans/a.plan: its graph has SHA-256 {'1' * 16}…, the graphs of the bundle have "
        f"{graph.files[0].sha256[:16]}…; rebuild with: dinov2rt build b --target sm80 --force"
    )


REPORT = AccuracyReport(
    Precision.FP16,
    "tensorrt",
    Limits(0.9999, 2.5e-3),
    (
        OutputAccuracy("a", "cls_token", 0.99999, 1e-3, 0.1, 0, True),
        OutputAccuracy("a", "patch_tokens", 0.99998, 2e-3, 0.1, 0, True),
    ),
)


def test_a_plan_is_unverified_until_it_is_noted_down(pooling_bundle: Path) -> None:
    other = replace(PLAN, file=FileEntry("plans/b.plan", 10, "2" * 64))
    manifest = replace(Manifest.read(pooling_bundle), plans=(other, PLAN))
    manifest.write(pooling_bundle)
    assert why_unverified(manifest, PLAN, A100) == (
        "unverified: never compared with the golden outputs; see `dinov2rt verify`"
    )
    noted = record_verification(pooling_bundle, PLAN, A100, REPORT)
    assert noted == Manifest.read(pooling_bundle)
    assert noted.plans[0] == other, "the other plan's entry is untouched"
    entry = noted.plans[1].verification
    assert entry is not None
    assert (entry.machine, entry.driver) == (A100.name, A100.driver)
    assert (entry.cosine_min, entry.relative_l2) == (0.99998, 2e-3)
    assert why_unverified(noted, PLAN, A100) is None


@pytest.mark.parametrize("other", [{"name": "NVIDIA A100-PCIE-40GB"}, {"driver": "590.1"}])
def test_verified_elsewhere_or_with_another_driver_is_unverified_here(
    pooling_bundle: Path, other: dict[str, str]
) -> None:
    seen = VerificationEntry(A100.name, A100.driver, "2026-01-01", 1.0, 0.0)
    plan = replace(PLAN, verification=seen)
    manifest = replace(Manifest.read(pooling_bundle), plans=(plan,))
    gpu = replace(A100, **other)
    assert why_unverified(manifest, plan, A100) is None
    assert why_unverified(manifest, plan, gpu) == (
        f"unverified here: compared on {A100.name} with driver {A100.driver}, this is "
        f"{gpu.name} with driver {gpu.driver}; see `dinov2rt verify`"
    )
