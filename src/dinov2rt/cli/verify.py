"""`dinov2rt verify`: compares a bundle's outputs with the eager model's."""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dinov2rt.bundle.accuracy import AccuracyReport, OutputAccuracy
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.limits import Limits
from dinov2rt.cli.arguments import add_bundle, add_load_options, load_model, require_export_room
from dinov2rt.cli.output import progress, table
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.errors import InputError
from dinov2rt.runtime.model import Model

_HEADER = (
    "case",
    "output",
    "cosine_min",
    "limit",
    "relative L2",
    "limit",
    "largest error",
    "NaN",
    "result",
)
_TASK_HEADER = ("case", "output", "relative L2", "off", "beyond margin", "allowed", "result")


def _add_arguments(parser: ArgumentParser) -> None:
    add_bundle(parser)
    eager = parser.add_argument_group("comparing with a freshly computed model (needs torch)")
    eager.add_argument(
        "--eager", action="store_true", help="instead of the golden outputs in the bundle"
    )
    eager.add_argument(
        "--image",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="centre crops of these (default: the photographs that ship with dinov2rt)",
    )
    eager.add_argument(
        "--size",
        metavar="HxW,...",
        help="sizes of the crops (default: 224x224, the native size, and an uneven one)",
    )
    eager.add_argument(
        "--weights", metavar="W", help="where the weights are now (default: as at the export)"
    )
    parser.add_argument(
        "--allow-unverifiable",
        action="store_true",
        help="exit with 0 for weights with which even float32 agrees with nothing",
    )
    add_load_options(parser)


def _run(arguments: Namespace) -> Outcome:
    sizes = None if arguments.size is None else parse_sizes(arguments.size)
    if arguments.eager:
        require_export_room("--eager")
    else:
        _refuse_eager_options(arguments)
    with load_model(arguments) as model:
        report = model.verify(_eager_cases(model, arguments, sizes) if arguments.eager else None)
    report = replace(report, allow_unverifiable=arguments.allow_unverifiable)
    return _outcome(arguments.bundle, model, report, "eager" if arguments.eager else "golden")


def parse_sizes(text: str) -> list[ImageSize]:
    """Sizes from "224,231x345": squares, or height first.

    Raises:
        InputError: anything else.
    """
    matches = [re.fullmatch(r"(\d{1,5})(x(\d{1,5}))?", size.strip()) for size in text.split(",")]
    sizes = [ImageSize(int(match[1]), int(match[3] or match[1])) for match in matches if match]
    if len(sizes) < len(matches) or any(min(size.height, size.width) < 1 for size in sizes):
        raise InputError(
            f"sizes {text!r}; allowed are SIDE or HEIGHTxWIDTH in pixels, separated by commas, "
            "such as 224,231x345"
        )
    return sizes


def _refuse_eager_options(arguments: Namespace) -> None:
    for option in ("image", "size", "weights"):
        if getattr(arguments, option) is not None:
            raise InputError(
                f"--{option} is for comparing with a freshly computed model; add --eager, "
                f"or leave --{option} out"
            )


def _eager_cases(
    model: Model, arguments: Namespace, sizes: Sequence[ImageSize] | None
) -> tuple[GoldenCase, ...]:
    from dinov2rt.export.eager_check import eager_cases

    progress("computing the eager model's outputs")
    return eager_cases(
        model.manifest,
        model.graph,
        sizes=sizes,
        images=arguments.image,
        weights=arguments.weights,
    )


def _outcome(bundle: Path, model: Model, report: AccuracyReport, reference: str) -> Outcome:
    document = {
        "bundle": bundle,
        "variant": model.manifest.name,
        "weights": model.manifest.weights,
        "reference": reference,
        "passed": bool(report),
        "report": report,
    }
    tables = [_table(report), *([_task_table(report)] if report.tasks else [])]
    return Outcome(document, "\n".join([*tables, str(report)]), status_of(report))


def _table(report: AccuracyReport) -> str:
    rows = [
        (
            output.case,
            output.output,
            *_cosine(output, report.limits),
            f"{output.relative_l2:.2e}",
            "none" if (limit := report.l2_limit(output)) is None else f"{limit:.1e}",
            f"{output.max_abs_error:.2e}",
            f"{output.nan_count}",
            "pass" if output.passed else "FAIL",
        )
        for output in report.outputs
    ]
    return table(_HEADER, rows)


def _task_table(report: AccuracyReport) -> str:
    """Attention maps, and outputs of heads."""
    rows = [
        (
            task.case,
            task.output,
            "" if task.relative_l2 is None else f"{task.relative_l2:.2e}",
            "" if task.share_off is None else f"{task.share_off:.3%}",
            "" if task.beyond_margin is None else f"{task.beyond_margin}",
            str(task.limits),
            "pass" if task.passed else "FAIL",
        )
        for task in report.tasks
    ]
    return table(_TASK_HEADER, rows)


def _cosine(output: OutputAccuracy, limits: Limits) -> tuple[str, str]:
    """The smallest cosine and its limit, or both at the first percentile."""
    if output.cosine_p1 is None:
        return f"{output.cosine_min:.8f}", f"{limits.cosine_min:.7g}"
    return f"{output.cosine_min:.8f}", f"{limits.cosine_p1:.7g} at p1: {output.cosine_p1:.8f}"


VERIFY = Verb("verify", "compare a bundle with the eager model's outputs", _add_arguments, _run)
