import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dinov2rt.bundle.entries import Flavour, PlanEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.profiles import ProfileEntry, ShapeRange
from dinov2rt.engines.plans import record_plan, write_plan
from dinov2rt.errors import BuildError


def _entry(bundle: Path, content: bytes) -> PlanEntry:
    return PlanEntry(
        file=write_plan(bundle, "sm80", content),
        flavour=Flavour.TENSORRT_RTX,
        version="1.7.1.116",
        target="sm80",
        precision=Precision.FP16,
        input_name="pixels",
        outputs=("cls_token", "patch_tokens"),
        profiles=(ProfileEntry("224", ShapeRange.pinned(ImageSize(224, 224), 8), 1024),),
        fused_attention=12,
        weight_bytes=1,
        build_seconds=9.5,
        graph_sha256="0" * 64,
        options={"weight_streaming": "true"},
    )


def test_a_plan_replaces_the_one_of_the_same_kind_and_stands_beside_others(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = copy_of(bundle_s_reg)
    first = _entry(bundle, b"first")
    other = dataclasses.replace(first, target="sm86")
    for entry in (first, other):
        record_plan(bundle, entry)
    assert Manifest.read(bundle).plans == (first, other)
    second = _entry(bundle, b"second")
    record_plan(bundle, second)
    assert Manifest.read(bundle).plans == (other, second)
    assert second.file.check(bundle, rebuild="").read_bytes() == b"second"
    assert {bundle / plan.file.path for plan in (other, second)} == set(
        (bundle / "plans").iterdir()
    )


def test_a_plan_that_a_killed_build_has_left_is_removed_by_the_next(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = copy_of(bundle_s_reg)
    left, entry = write_plan(bundle, "sm80", b"left"), _entry(bundle, b"plan")
    other = write_plan(bundle, "sm86", b"other")
    record_plan(bundle, entry)
    assert not (bundle / left.path).exists()
    assert (bundle / other.path).exists()
    with pytest.raises(BuildError, match="another build of this plan has just ended; build again"):
        record_plan(bundle, dataclasses.replace(entry, file=left))
    assert Manifest.read(bundle).plans == (entry,)


def test_a_plan_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "plans").write_text("in the way")
    with pytest.raises(BuildError, match=r"sm80-\w+\.plan cannot be written .* free the disk"):
        write_plan(tmp_path, "sm80", b"plan")
    assert [file.name for file in tmp_path.iterdir()] == ["plans"]


def test_two_builds_at_once_lose_no_plan(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = copy_of(bundle_s_reg)
    targets = [f"sm{number}" for number in range(80, 96)]
    entries = [dataclasses.replace(_entry(bundle, b"same"), target=target) for target in targets]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda entry: record_plan(bundle, entry), entries))
    assert {plan.target for plan in Manifest.read(bundle).plans} == set(targets)
