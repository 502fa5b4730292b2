import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dinov2rt.bundle.accuracy import (
    AccuracyReport,
    OutputAccuracy,
    compare,
    compare_cases,
    nearest_lost,
)
from dinov2rt.bundle.golden import Golden, GoldenCase
from dinov2rt.bundle.limits import FLOAT32_LIMITS, INT8_LIMITS, Limits, TaskLimits
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.tasks.accuracy import compare_task_cases
from dinov2rt.errors import BundleError

FP32, FP16 = FLOAT32_LIMITS, Limits(cosine_min=0.99999, relative_l2=1.6e-3)


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def compared(got: np.ndarray, want: np.ndarray, limits: Limits = FP32) -> OutputAccuracy:
    return compare("224x224", "cls_token", got, want, limits)


# One comparison


def test_identical_arrays_agree_exactly() -> None:
    want = tokens(2, 5, 8)
    result = compared(want.copy(), want)
    assert (result.case, result.output) == ("224x224", "cls_token")
    assert result.relative_l2 == 0
    assert result.max_abs_error == 0
    assert result.nan_count == 0
    assert result.cosine_min == pytest.approx(1, abs=1e-12)
    assert result.passed


def test_a_known_relative_error() -> None:
    want = tokens(2, 5, 8)
    result = compared(want.astype(np.float64) * 1.001, want)
    assert result.relative_l2 == pytest.approx(1e-3)
    assert result.max_abs_error == pytest.approx(1e-3 * np.abs(want).max())
    assert result.cosine_min == pytest.approx(1, abs=1e-12)  # the direction is the same
    assert not result.passed
    assert compared(want * np.float32(1.001), want, FP16).passed


def test_the_smallest_cosine_is_that_of_the_worst_token() -> None:
    want = np.zeros((1, 3, 4), np.float32)
    want[..., 0] = 1
    got = want.copy()
    got[0, 1] = [0.6, 0.8, 0, 0]
    result = compared(got, want)
    assert result.cosine_min == pytest.approx(0.6)
    assert result.max_abs_error == pytest.approx(0.8)
    assert result.relative_l2 == pytest.approx(math.sqrt((0.4**2 + 0.8**2) / 3))
    assert not result.passed


def test_one_bad_token_among_many_fails_by_its_cosine_alone() -> None:
    want = tokens(1, 100_000, 8)
    want[0, 7] *= 1e-6  # too short to be seen in the error of the whole output
    got = want.copy()
    got[0, 7] *= -1
    result = compared(got, want)
    assert result.relative_l2 < FP32.relative_l2
    assert result.cosine_min == pytest.approx(-1)
    assert not result.passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_fails(value: float) -> None:
    want = tokens(2, 5, 8)
    got = want.copy()
    got[1, 2, 3] = value
    result = compared(got, want, Limits(cosine_min=-2, relative_l2=math.inf))
    assert result.nan_count == 1
    assert not result.passed


@pytest.mark.parametrize("scale", [0, 1])
def test_a_zero_token_in_the_reference_fails_without_a_warning(scale: int) -> None:
    want = tokens(1, 5, 8)
    got = want.copy()
    want[0, 3] = 0
    got[0, 3] *= scale
    result = compared(got, want)
    assert math.isnan(result.cosine_min)
    assert not result.passed


@pytest.mark.parametrize("scale", [0, 1])
def test_a_reference_of_zeros_fails_without_a_warning(scale: int) -> None:
    want = tokens(1, 5, 8)
    result = compared(want * scale, np.zeros_like(want))
    assert not math.isfinite(result.relative_l2)
    assert not result.passed


def test_a_zero_token_beside_a_reference_fails_without_a_warning() -> None:
    want = tokens(1, 5, 8)
    got = want.copy()
    got[0, 3] = 0
    assert not compared(got, want).passed


def test_small_differences_of_half_precision_are_not_rounded_away() -> None:
    want = np.full((1, 4), 1000, np.float32)
    result = compared(want.astype(np.float16) + np.float16(0.5), want)
    assert result.max_abs_error == 0.5


def test_shape_mismatch() -> None:
    with pytest.raises(BundleError) as error:
        compared(tokens(2, 8), tokens(2, 9))
    assert str(error.value) == (
        "output cls_token at 224x224 has shape [2, 8], its golden output [2, 9]; "
        "graph and golden outputs are not of one export"
    )


# Reports


def report(*outputs: OutputAccuracy) -> AccuracyReport:
    return AccuracyReport(Precision.FP32, "onnxruntime 1.24.0, cpu", FP32, outputs)


def result(
    name: str, *, cosine_min: float = 1, relative_l2: float = 0, passed: bool = True
) -> OutputAccuracy:
    return OutputAccuracy("98x126", name, cosine_min, relative_l2, 0.5, 0, passed)


def test_a_report_is_true_when_every_output_passed() -> None:
    assert report(result("cls_token"), result("patch_tokens"))
    assert not report(result("cls_token"), result("patch_tokens", passed=False))


def test_a_report_gives_the_worst_values() -> None:
    both = report(
        result("cls_token", cosine_min=0.9, relative_l2=2e-6),
        result("patch_tokens", cosine_min=0.8, relative_l2=1e-6),
    )
    assert both.cosine_min == 0.8
    assert both.relative_l2 == 2e-6


@pytest.mark.parametrize("first", [True, False])
def test_nan_is_worse_than_any_value(first: bool) -> None:
    bad = result("cls_token", cosine_min=math.nan, relative_l2=math.nan, passed=False)
    outputs = (bad, result("patch_tokens")) if first else (result("patch_tokens"), bad)
    assert math.isnan(report(*outputs).cosine_min)
    assert math.isnan(report(*outputs).relative_l2)
    assert "worst is cls_token at 98x126: relative L2 nan" in str(report(*outputs))


def test_a_report_names_the_worst_output_in_one_line() -> None:
    text = str(
        report(
            result("cls_token", relative_l2=2e-6),
            result("patch_tokens", cosine_min=0.5, relative_l2=1e-6, passed=False),
        )
    )
    assert text == (
        "FAILED: fp32 on onnxruntime 1.24.0, cpu, worst is patch_tokens at 98x126: relative L2 "
        "1.00e-06 (limit 1e-05), smallest cosine 0.5000000 (limit 0.999999), 0 NaN"
    )
    assert str(report(result("cls_token"))).startswith("passed: fp32 on onnxruntime 1.24.0, cpu, ")


def test_an_empty_report_is_false_and_says_so() -> None:
    assert not report()
    assert str(report()) == "FAILED: fp32 on onnxruntime 1.24.0, cpu, nothing was compared"


# Golden outputs


def case(name: str, seed: int) -> GoldenCase:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    outputs = {
        "cls_token": generator.standard_normal((2, 8), dtype=np.float32),
        "patch_tokens": generator.standard_normal((2, 6, 8), dtype=np.float32),
    }
    return GoldenCase(name, pixels, outputs)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    file = tmp_path / "golden.npz"
    Golden((case("28x42", 1), case("28x42 again", 2), case("third", 3))).write(file)
    return file


def test_golden_outputs_are_read_as_they_were_written(golden: Path) -> None:
    cases = Golden.read(golden).cases
    assert [got.name for got in cases] == ["28x42", "28x42 again", "third"]
    for seed, got in enumerate(cases, start=1):
        want = case(got.name, seed)
        np.testing.assert_array_equal(got.images, want.images)
        assert got.outputs.keys() == want.outputs.keys()
        for name, value in want.outputs.items():
            np.testing.assert_array_equal(got.outputs[name], value)
            assert got.outputs[name].dtype == np.float32


def test_the_first_case_has_plain_names_in_the_file(golden: Path) -> None:
    with np.load(golden) as archive:
        assert {"cases", "images", "cls_token", "patch_tokens", "third/images"} <= set(archive)


def test_a_case_names_the_output_that_it_does_not_hold() -> None:
    with pytest.raises(BundleError) as error:
        case("28x42", 1).reference("register_tokens")
    assert str(error.value) == (
        "the golden case 28x42 holds no register_tokens, which the graph returns; "
        "graph and golden outputs are not of one export"
    )


def _missing(file: Path) -> None:
    file.unlink()


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _no_archive(file: Path) -> None:
    file.write_bytes(b"not an archive")


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _single_array(file: Path) -> None:
    with file.open("wb") as stream:
        np.save(stream, np.zeros(3))


def _other_archive(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")


def _no_cases(file: Path) -> None:
    np.savez(file, images=np.zeros(3))


def _scalar_cases(file: Path) -> None:
    np.savez(file, cases=np.array("28x42"), images=np.zeros(3))


def _no_images(file: Path) -> None:
    np.savez(file, cases=np.array(["28x42"]), cls_token=np.zeros(3))


def _pickled(file: Path) -> None:
    np.savez(file, cases=np.array([{"28x42": 1}], dtype=object))


@pytest.mark.parametrize(
    "damage",
    [
        _missing,
        _empty,
        _no_archive,
        _cut_short,
        _flipped,
        _single_array,
        _other_archive,
        _no_cases,
        _scalar_cases,
        _no_images,
        _pickled,
    ],
)
def test_a_misshapen_file_is_one_line(golden: Path, damage: Callable[[Path], None]) -> None:
    damage(golden)
    with pytest.raises(BundleError) as error:
        Golden.read(golden)
    assert str(error.value).startswith(f"{golden} holds no golden outputs (")
    assert "\n" not in str(error.value)


# Neighbours


def at_degrees(*angles: float) -> np.ndarray:
    radians = np.deg2rad(angles)
    return np.stack((np.cos(radians), np.sin(radians)), axis=1).astype(np.float32)


def test_what_is_lost_is_the_difference_of_cosines_to_the_nearest() -> None:
    want = at_degrees(0, 10, 30)
    got = at_degrees(0, 20, 30)  # the second one is now nearer to the third
    lost = np.cos(np.deg2rad(10)) - np.cos(np.deg2rad(20))
    np.testing.assert_allclose(nearest_lost(got, want), [0, lost, 0], atol=1e-7)


def test_lengths_do_not_matter_and_none_is_its_own_neighbour() -> None:
    want = tokens(20, 8)
    assert not nearest_lost(want * np.linspace(1, 9, 20)[:, None], want).any()


@pytest.mark.parametrize(
    ("limits", "says_nothing"),
    [
        (FLOAT32_LIMITS, False),
        (Limits(cosine_min=0.9995, relative_l2=0.014), False),
        (INT8_LIMITS, False),
        (Limits(cosine_min=0.2, relative_l2=1e-3), True),
        (Limits(cosine_min=0.999, relative_l2=1.2), True),
        (Limits(cosine_min=0.999, relative_l2=1e-3, pooled_l2=0.2), True),
        (Limits(cosine_min=float("nan")), True),
    ],
)
def test_limits_that_another_model_would_hold_are_no_verification(
    limits: Limits, says_nothing: bool
) -> None:
    assert limits.say_nothing is says_nothing
    token = np.ones((1, 8), np.float32)
    outputs = compare_cases([("a", {"cls_token": token}, {"cls_token": token})], limits)
    outputs = tuple(replace(output, passed=True) for output in outputs)
    report = AccuracyReport(Precision.FP32, "test", limits, outputs)
    assert bool(report) is not says_nothing
    assert ("UNVERIFIABLE" in str(report)) is says_nothing
    assert replace(report, allow_unverifiable=True)


def test_few_vectors_are_held_to_their_limit_over_all_cases() -> None:
    want = np.ones((1, 16), np.float32)
    limits = Limits(cosine_min=-1, relative_l2=0.01, pooled_l2=0.2)
    cases = [
        ("near", {"cls_token": want}, {"cls_token": want}),
        ("far", {"cls_token": want * np.float32(1.25)}, {"cls_token": want}),
    ]
    near, far, both = compare_cases(cases, limits)
    assert (near.passed, far.passed, both.passed) == (True, True, True)
    assert both.case == "all"
    assert both.relative_l2 == pytest.approx(0.25 / 2**0.5)
    # "far" alone is held to no limit, so the report names what is.
    report = AccuracyReport(Precision.FP16, "test", limits, (near, far, both), True)
    assert "worst is cls_token at all: relative L2 1.77e-01 (limit 0.2)" in str(report)
    assert "0.2 for CLS and register tokens over all cases" in str(limits)
    *_, both = compare_cases(cases, replace(limits, pooled_l2=0.17))
    assert not both.passed


def test_one_map_of_attention_may_be_off_if_all_together_are_not() -> None:
    limits = {"attention": TaskLimits(pooled_l2=0.2)}
    small, large = np.ones((1, 2, 4), np.float32), np.ones((1, 2, 12), np.float32)
    cases = [
        ("far", {"attention": small * np.float32(1.3)}, {"attention": small}),
        ("near", {"attention": large}, {"attention": large}),
    ]
    far, near, both = compare_task_cases(cases, limits)
    assert (far.passed, near.passed, both.passed) == (True, True, True)
    assert (both.case, both.relative_l2) == ("all", pytest.approx(0.15))
    assert str(both) == "attention at all: relative L2 1.50e-01 (allowed: relative L2 0.2)"
    *_, both = compare_task_cases(cases, {"attention": TaskLimits(pooled_l2=0.14)})
    assert not both.passed
    cases[0][1]["attention"][0, 0, 0] = np.nan
    *_, both = compare_task_cases(cases, limits)
    assert not both.passed
    assert compare_task_cases([], limits) == ()
    assert compare_task_cases([("a", {}, cases[0][2])], limits) == ()


def test_patch_tokens_are_held_case_by_case() -> None:
    want = np.ones((1, 4, 16), np.float32)
    limits = Limits(cosine_min=-1, relative_l2=0.01, pooled_l2=0.2)
    cases = [("far", {"patch_tokens": want * np.float32(1.1)}, {"patch_tokens": want})]
    (far,) = compare_cases(cases, limits)
    assert not far.passed
