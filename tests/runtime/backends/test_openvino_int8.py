"""What `describe()` says of an int8 graph; the graphs themselves are run in tests/export/int8."""

from dataclasses import replace
from pathlib import Path

import pytest

from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import CalibrationEntry, QuantizationEntry
from dinov2rt.runtime.backends.openvino_int8 import _warning

DRAWN = CalibrationEntry((), 4, "0" * 64, 80, 116, 116, drawings=25)
MEASURED = QuantizationEntry(
    ("blocks.0.down",), 0.9996, 0.9990, 0.97, 1.0, DRAWN, static=("blocks.0.qkv",)
)
OLDER = "; text, drawings and plain colours are less accurate: export int8 again"


@pytest.fixture
def graph(bundle_s_reg: Path) -> GraphEntry:
    (graph, *_) = Manifest.read(bundle_s_reg).graphs
    return graph


@pytest.mark.parametrize("calibration", [None, replace(DRAWN, drawings=0)])
def test_static_ranges_of_photographs_alone_are_mentioned(
    graph: GraphEntry, calibration: CalibrationEntry | None
) -> None:
    older = replace(MEASURED, calibration=calibration)
    assert _warning(replace(graph, quantization=older)) == OLDER
    assert _warning(replace(graph, quantization=replace(older, static=()))) == ""


@pytest.mark.parametrize(
    ("cls_token", "others", "said"),
    [
        (None, None, ""),
        (0.9990, 0.9950, ""),
        (0.9983, 0.9960, "smallest CLS cosine 0.9983 instead of 0.9996"),
        (0.9993, 0.9941, "first percentile of other tokens 0.9941 instead of 0.9990"),
    ],
)
def test_drawings_that_miss_the_limits_are_mentioned(
    graph: GraphEntry, cls_token: float | None, others: float | None, said: str
) -> None:
    entry = replace(MEASURED, drawn_cls_cosine_min=cls_token, drawn_token_cosine_p1=others)
    warning = _warning(replace(graph, quantization=entry))
    assert said in warning
    assert warning.startswith("; drawings are less accurate than photographs: ") is bool(said)
