"""Checks a candidate's outputs against eager float32, at every cell and before any timing."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.results import Accuracy
from dinov2rt.bundle.accuracy import compare_cases, cosines
from dinov2rt.bundle.limits import FLOAT32_LIMITS, Limits, TaskLimits
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.tasks.accuracy import compare_task_cases
from dinov2rt.errors import BundleError

Outputs = Mapping[str, NDArray[np.float32]]


def limits_for(manifest: Manifest, precision: Precision) -> Limits:
    """The accuracy limits for candidates of `precision`, taken from the bundle's graph.

    Raises:
        BundleError: the bundle has no graph of `precision`. Only for float32 there are default
            limits.
    """
    in_bf16 = [graph.in_bf16 for graph in manifest.graphs if graph.in_bf16]
    for graph in (*manifest.graphs, *in_bf16):
        if graph.precision is precision:
            return graph.limits
    if precision is Precision.FP32:
        return FLOAT32_LIMITS
    raise BundleError(
        f"the bundle has no {precision} graph, so the accuracy limits for {precision} are unknown; "
        f"export it with --precision {precision} as well"
    )


def task_limits_for(manifest: Manifest, precision: Precision) -> Mapping[str, TaskLimits]:
    """The accuracy limits of heads for candidates of `precision`, by output.

    Raises:
        BundleError: the bundle has no graph of `precision` with limits for its heads.
    """
    for graph in manifest.graphs:
        if graph.precision is precision and graph.task_limits:
            return graph.task_limits
    raise BundleError(
        f"the bundle has no limits of its heads for {precision}; export it again with --precision "
        f"{precision} as well"
    )


def check_heads(outputs: Outputs, reference: Outputs, limits: Mapping[str, TaskLimits]) -> Accuracy:
    """Compare the answers of heads with `reference`; those that only one of them has are ignored.

    `relative_l2` is the largest of logits, depth and scores; there are no cosines. With fewer than
    four images, logits may be off by twice what a limit over several images allows.

    Raises:
        BundleError: shapes differ.
    """
    judged = {
        name: limit.for_images(len(outputs[name]))
        for name, limit in limits.items()
        if name in outputs
    }
    compared = compare_task_cases([("cell", outputs, reference)], judged)
    errors = [each.relative_l2 for each in compared if each.relative_l2 is not None]
    return Accuracy(
        passed=bool(compared) and all(each.passed for each in compared),
        limits="; ".join(f"{name}: {limit}" for name, limit in judged.items()),
        cosine_min=None,
        relative_l2=max(errors, default=None),
        cls_cosine_min=None,
        patch_cosine_p1=None,
        nan_count=sum(int(np.isnan(value).sum()) for value in outputs.values()),
    )


def check(outputs: Outputs, reference: Outputs, limits: Limits) -> Accuracy:
    """Compare the candidate's tokens with `reference`, [B, D] or [B, tokens, D] each.

    Outputs that only one of them has are ignored; CLS and patch tokens are required. With fewer
    than four images, CLS and register tokens may be off by twice what the limits allow.

    Raises:
        BundleError: shapes differ.
    """
    both = {name: value for name, value in outputs.items() if name in reference}
    judged = limits.for_images(len(outputs["cls_token"]))
    compared = compare_cases([("cell", both, reference)], judged)
    patch_cosines = cosines(outputs["patch_tokens"], reference["patch_tokens"])
    return Accuracy(
        passed=all(output.passed for output in compared),
        limits=str(judged),
        cosine_min=float(np.min([output.cosine_min for output in compared])),  # NaN if any is
        relative_l2=float(np.max([output.relative_l2 for output in compared])),
        cls_cosine_min=float(cosines(outputs["cls_token"], reference["cls_token"]).min()),
        patch_cosine_p1=float(np.percentile(patch_cosines, 1)),
        nan_count=sum(output.nan_count for output in compared),
    )
