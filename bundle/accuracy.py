"""Compares outputs with the eager model's, without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.limits import POOLED, Limits
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import X_PRENORM, FloatArray
from dinov2rt.bundle.tasks.accuracy import TaskAccuracy
from dinov2rt.errors import BundleError
from dinov2rt.foreign import shown


def is_pooled(output: str) -> bool:
    """Whether `output` has one or a few vectors per image: a CLS token, or register tokens."""
    return not output.endswith(("patch_tokens", X_PRENORM))


def nearest_lost(got: FloatArray, want: FloatArray) -> NDArray[np.float64]:
    """The loss in cosine when each row's nearest neighbour is searched with `got`.

    Args:
        got: CLS tokens [B, D]; with them, each row finds the other row of the highest cosine.
        want: CLS tokens of the reference; the cosines are measured with them.

    Returns:
        Cosine of the true nearest neighbour minus cosine of the found one, [B]; 0 if they are the
        same.
    """
    similarity = _similarity(want)
    found = np.take_along_axis(similarity, _similarity(got).argmax(axis=1)[:, None], axis=1)
    return np.asarray(similarity.max(axis=1) - found[:, 0])


def _similarity(cls_tokens: FloatArray) -> NDArray[np.float64]:
    """Cosines [B, B] between rows [B, D], -inf on the diagonal."""
    unit = cls_tokens.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity)


@dataclass(frozen=True, slots=True)
class OutputAccuracy:
    """The agreement of one output of one case with its reference.

    `cosine_min` is the smallest cosine over all tokens, `relative_l2` is `|got - want| / |want|`
    over the whole output, `max_abs_error` the largest single difference, `nan_count` the number of
    values that are not finite. The cosine to a zero token is NaN, and the comparison fails.
    `cosine_p1` is the first percentile of the cosines if the limits use it, otherwise None.
    """

    case: str
    output: str
    cosine_min: float
    relative_l2: float
    max_abs_error: float
    nan_count: int
    passed: bool
    cosine_p1: float | None = None


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """All comparisons of one run; true if all passed and the limits are meaningful.

    `outputs` are tokens; `tasks` are attention maps and the outputs of heads. If the limits are
    not meaningful, the report is false, unless `allow_unverifiable` is set.
    """

    precision: Precision
    backend: str
    limits: Limits
    outputs: tuple[OutputAccuracy, ...]
    allow_unverifiable: bool = False
    tasks: tuple[TaskAccuracy, ...] = ()

    def __bool__(self) -> bool:
        is_checked = self.allow_unverifiable or not self.limits.say_nothing
        passed = [each.passed for each in self.outputs] + [each.passed for each in self.tasks]
        return bool(self.outputs) and is_checked and all(passed)

    @property
    def cosine_min(self) -> float:
        """The smallest cosine of all outputs, NaN if any is NaN."""
        return float(np.min([output.cosine_min for output in self.outputs]))

    @property
    def relative_l2(self) -> float:
        """The largest relative error of all outputs, NaN if any is NaN."""
        return float(np.max([output.relative_l2 for output in self.outputs]))

    def __str__(self) -> str:
        if not self.outputs:
            return f"FAILED: {self.precision} on {self.backend}, nothing was compared"
        if self.limits.say_nothing and not self.allow_unverifiable:
            return (
                f"UNVERIFIABLE: {self.precision} on {self.backend}: with these weights the limits "
                f"are so wide that another model would pass ({self.limits}); "
                "--allow-unverifiable accepts that"
            )
        worst = max(self.outputs, key=self._badness)
        l2_limit = self.l2_limit(worst)
        return (
            f"{'passed' if self else 'FAILED'}: {self.precision} on {self.backend}, worst is "
            f"{shown(worst.output)} at {shown(worst.case)}: relative L2 {worst.relative_l2:.2e} "
            f"({'no limit' if l2_limit is None else f'limit {l2_limit:.3g}'}), "
            f"{self._cosine(worst)}, {worst.nan_count} NaN{self._task_failures()}"
        )

    def _task_failures(self) -> str:
        failed = [str(task) for task in self.tasks if not task.passed]
        return "".join(f"; {text}" for text in failed)

    def _badness(self, output: OutputAccuracy) -> tuple[bool, float, float]:
        """Sort key: failures first, then by the share of the limit, then by error."""
        limit = self.l2_limit(output)
        share = 0.0 if limit is None else output.relative_l2 / limit
        return not output.passed, share, output.relative_l2

    def l2_limit(self, output: OutputAccuracy) -> float | None:
        """The largest relative error of `output` that passes; None if there is no limit."""
        if self.limits.pooled_l2 is None or not is_pooled(output.output):
            return self.limits.relative_l2
        return self.limits.pooled_l2 if output.case == POOLED else None

    def _cosine(self, output: OutputAccuracy) -> str:
        """The cosine of `output` that the limits apply to, as text."""
        limits = self.limits
        if output.cosine_p1 is None:
            return f"smallest cosine {output.cosine_min:.7f} (limit {limits.cosine_min:.7g})"
        return (
            f"cosine at the first percentile {output.cosine_p1:.7f} (limit {limits.cosine_p1:.7g})"
        )


def compare_cases(
    cases: Sequence[tuple[str, Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]],
    limits: Limits,
) -> tuple[OutputAccuracy, ...]:
    """Compare all outputs of all cases, each given as (name, outputs, reference).

    With `limits.pooled_l2`, each output with few vectors per image has one more comparison, over
    all cases together, whose case is `POOLED`.
    """
    compared = [
        compare(case, name, value, want[name], limits)
        for case, got, want in cases
        for name, value in got.items()
    ]
    if limits.pooled_l2 is None or not cases:
        return tuple(compared)
    for name in filter(is_pooled, cases[0][1]):
        all_got = np.concatenate([got[name] for _, got, _ in cases])
        all_want = np.concatenate([want[name] for _, _, want in cases])
        alone = replace(limits, relative_l2=limits.pooled_l2, pooled_l2=None)
        compared.append(compare(POOLED, name, all_got, all_want, alone))
    return tuple(compared)


def cosines(got: NDArray[Any], want: NDArray[Any]) -> NDArray[np.float64]:
    """The cosine of each token [..., D] of `got` to its own of `want`, [...], in float64.

    NaN beside a token of length zero.
    """
    exact, reference = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.linalg.norm(exact, axis=-1) * np.linalg.norm(reference, axis=-1)
        return np.asarray(np.sum(exact * reference, axis=-1) / lengths)


def relative_l2(got: NDArray[Any], want: NDArray[Any]) -> float:
    """`|got - want| / |want|` over whole arrays, in float64."""
    exact, reference = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.linalg.norm(exact - reference) / np.linalg.norm(reference))


def compare(
    case: str, output: str, got: NDArray[Any], want: NDArray[Any], limits: Limits
) -> OutputAccuracy:
    """Compare two arrays [..., D] token by token, in float64."""
    if got.shape != want.shape:
        raise BundleError(
            f"output {shown(output)} at {shown(case)} has shape {list(got.shape)}, its golden "
            "output "
            f"{list(want.shape)}; graph and golden outputs are not of one export"
        )
    nan_count = int(got.size - np.isfinite(got).sum())
    token_cosines = cosines(got, want)
    with np.errstate(invalid="ignore"):
        max_abs_error = float(np.abs(got.astype(np.float64) - want).max())
    by_percentile = limits.cosine_p1 is not None and got.ndim > 2  # CLS tokens are [B, D]
    result = OutputAccuracy(
        case,
        output,
        cosine_min=float(token_cosines.min()),
        relative_l2=relative_l2(got, want),
        max_abs_error=max_abs_error,
        nan_count=nan_count,
        passed=False,
        cosine_p1=float(np.percentile(token_cosines, 1)) if by_percentile else None,
    )
    is_held_later = limits.pooled_l2 is not None and is_pooled(output)
    l2_limit = None if is_held_later else limits.relative_l2
    return replace(result, passed=_within(result, limits, l2_limit))


def _within(result: OutputAccuracy, limits: Limits, l2_limit: float | None) -> bool:
    # A value that is not finite makes a cosine NaN, which never passes a limit.
    if l2_limit is not None and not result.relative_l2 <= l2_limit:
        return False
    if result.cosine_p1 is not None and limits.cosine_p1 is not None:
        return result.cosine_p1 >= limits.cosine_p1
    return result.cosine_min >= limits.cosine_min
