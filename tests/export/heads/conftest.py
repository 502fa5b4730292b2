"""A narrow backbone of twelve blocks with every head: seconds instead of minutes."""

from dataclasses import replace

import onnx_ir as ir
import pytest

from dinov2rt.bundle.heads import OFFICIAL_HEADS
from dinov2rt.bundle.variants import Variant, find_variant
from dinov2rt.export.graph import ExportGraph
from dinov2rt.export.heads.checkpoint import HeadSource, load_heads
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.trace import trace
from dinov2rt.export.weights.synthetic import synthetic_state_dict


@pytest.fixture(scope="session")
def narrow() -> Variant:
    return replace(find_variant("dinov2_vits14"), embed_dim=128, num_heads=2, hidden_dim=256)


@pytest.fixture(scope="session")
def eager(narrow: Variant) -> Dinov2:
    model = load_eager(narrow, synthetic_state_dict(narrow, 0))
    sources = tuple(HeadSource(name, "synthetic:0") for name in OFFICIAL_HEADS)
    model.task_heads = load_heads(sources, narrow)
    return model


@pytest.fixture(scope="session")
def traced(narrow: Variant) -> ir.Model:
    """The float32 trace of the backbone alone; work on a clone."""
    return trace(ExportGraph(narrow, synthetic_state_dict(narrow, 0)).eval())
