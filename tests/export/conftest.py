"""Traces that many tests share: a trace takes seconds, and nobody may change it."""

import functools
from collections.abc import Callable

import onnx_ir as ir
import pytest

from dinov2rt.bundle.variants import Variant
from dinov2rt.export.graph import ExportGraph
from dinov2rt.export.trace import trace
from dinov2rt.export.weights.synthetic import synthetic_state_dict


@pytest.fixture(scope="session")
def toy_trace(toy_variant: Callable[[str], Variant]) -> Callable[[str], ir.Model]:
    """The float32 trace of a toy variant; work on a clone."""

    @functools.cache
    def traced(name: str) -> ir.Model:
        variant = toy_variant(name)
        return trace(ExportGraph(variant, synthetic_state_dict(variant, 0)).eval())

    return traced
