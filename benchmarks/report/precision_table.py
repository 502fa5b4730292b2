"""The table that compares dinov2rt's precisions with one another."""

from dinov2rt.benchmarks.report.formats import NOTHING, cosine, precision_name, ratio_text
from dinov2rt.benchmarks.report.ratios import TimeRatio, beside_float32, int8_beside_bfloat16
from dinov2rt.benchmarks.report.tables import Table
from dinov2rt.benchmarks.results import BenchmarkRun, Row

_HEADER = (
    "cell",
    "dinov2rt in",
    "fastest float32 candidate",
    "time ÷ its time (95 %)",
    "time ÷ dinov2rt in bfloat16 (95 %)",
    "CLS tokens, smallest cosine",
    "patch tokens, first percentile of the cosine",
)


def precision_table(run: BenchmarkRun) -> Table | None:
    """Time and accuracy of dinov2rt in lower precisions, by cell; None if the run has none."""
    over_bfloat16 = {each.own: each for each in int8_beside_bfloat16(run)}
    rows = tuple(_line(each, over_bfloat16.get(each.own)) for each in beside_float32(run))
    title = "What lower precisions save, and what they cost"
    return Table(title, _HEADER, rows, labels=3) if rows else None


def _line(over_float32: TimeRatio, over_bfloat16: TimeRatio | None) -> tuple[str, ...]:
    return (
        str(over_float32.cell),
        precision_name(over_float32.precision),
        over_float32.other.candidate,
        ratio_text(over_float32.ratio),
        ratio_text(over_bfloat16.ratio if over_bfloat16 else None),
        *_accuracy(over_float32.own),
    )


def _accuracy(row: Row) -> tuple[str, str]:
    if row.accuracy is None:
        return NOTHING, NOTHING
    found = row.accuracy.cls_cosine_min, row.accuracy.patch_cosine_p1
    first, last = (NOTHING if each is None else cosine(each) for each in found)
    return first, last
