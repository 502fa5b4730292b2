"""`dinov2rt info` of bundles with heads and plans."""

import re
from pathlib import Path

import pytest
from support.plans import add_plan

from dinov2rt.bundle.entries import VerificationEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.heads import OFFICIAL_HEADS
from dinov2rt.bundle.profiles import ProfileEntry, ShapeRange
from dinov2rt.cli import main


def lines(capsys: pytest.CaptureFixture[str], bundle: Path) -> list[str]:
    capsys.readouterr()
    assert main(["info", str(bundle)]) == 0
    return [re.sub(r"\s+", " ", line).strip() for line in capsys.readouterr().out.splitlines()]


def test_heads_are_listed_with_blocks_ranges_and_shapes(
    bundle_heads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = lines(capsys, bundle_heads)
    heads = [line for line in shown if line.startswith("head ")]
    assert [line.split()[1] for line in heads] == list(OFFICIAL_HEADS)
    facts = "head nyu-linear4 from synthetic:0, blocks 2, 5, 8, 11, 0.001 to 10.0 m, SHA-256 "
    assert any(line.startswith(facts) for line in heads)
    assert "output logits_linear [B, 1000]" in shown
    assert "output depth_nyu_dpt [B, H, W] in metres" in shown
    assert "output segmentation_ade20k_linear [B, H, W] classes, uint8" in shown
    assert not any(line.endswith("unknown") for line in shown)


@pytest.mark.parametrize(
    ("verification", "agreement"),
    [
        (None, "unverified"),
        (
            VerificationEntry("A100", "580", "2026-01-01", 0.999, 1.5e-3),
            "relative L2 1.50e-03 on A100",
        ),
    ],
)
def test_a_plan_is_listed_with_its_profiles_and_whether_it_was_verified(
    verification: VerificationEntry | None,
    agreement: str,
    pooling_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    profile = ProfileEntry("224", ShapeRange.pinned(ImageSize(224, 224), 1), 0)
    add_plan(pooling_bundle, profiles=(profile,), verification=verification)
    (line,) = (each for each in lines(capsys, pooling_bundle) if each.startswith("plan "))
    assert line.startswith("plan plans/a.plan: fp32 for sm80, tensorrt_rtx 1.7, profiles 224 ")
    assert line.endswith(agreement)
