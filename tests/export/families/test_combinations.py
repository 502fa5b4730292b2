"""Combinations of an architecture's parts that no family has: the graph, eager and a second model.

Each is computed at fewer, at as many, and at more patches than the position table has.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import naive_vit
from support.eager_tokens import eager_tokens
from support.float32_graph import Float32Graph
from support.unusual import UNUSUAL

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.model import load

HALVES = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
PLAIN: dict[str, Any] = {
    "embed_dim": 96,
    "depth": 2,
    "num_heads": 2,
    "ffn": "mlp",
    "hidden_dim": 200,
    "patch_size": 14,
    "num_registers": 0,
    "native_grid": Grid(9, 16),
    "antialias": False,
    "offset": 0.1,
    "normalization": IMAGENET,
    "layer_scale": True,
    "qkv_bias": True,
}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "patch16-reg4-heads48": {
        "patch_size": 16,
        "num_registers": 4,
        "native_grid": Grid(16, 24),
        "antialias": True,
        "offset": 0.0,
    },
    "patch8-odd-swiglu-heads20": {
        "embed_dim": 60,
        "num_heads": 3,
        "ffn": "swiglu",
        "hidden_dim": 171,
        "patch_size": 8,
        "num_registers": 1,
        "offset": 0.0,
        "normalization": HALVES,
        "layer_scale": False,
    },
    "antialias-without-registers": {"antialias": True, "offset": 0.0, "depth": 3},
    "antialias-with-offset": {"antialias": True, "offset": 0.3, "num_registers": 8},
    "no-qkv-bias": {"qkv_bias": False, "depth": 3, "native_grid": Grid(7, 12)},
    "one-head-of-one-block": {"depth": 1, "num_heads": 1, "num_registers": 4, "hidden_dim": 97},
    "one-row": {"native_grid": Grid(1, 24), "patch_size": 4, "ffn": "swiglu", "hidden_dim": 64},
}


def examples(architecture: Architecture) -> Iterator[np.ndarray]:
    """Batches of one to three; two have sides that are no multiples of the patch."""
    side, native = architecture.patch_size, architecture.native_grid
    rows, cols = native.rows, native.cols
    rng = np.random.default_rng(0)
    for shape in (
        (3, max(1, rows // 2) * side + 1, (cols // 3) * side + side - 1, 3),
        (1, rows * side, cols * side, 3),
        (2, (rows + 3) * side, (cols + 1) * side + 2, 3),
        (1, side, side, 3),
    ):
        yield rng.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_eager_computes_what_a_second_implementation_does(name: str) -> None:
    architecture = Architecture(**PLAIN | COMBINATIONS[name])
    state = synthetic_state_dict(architecture, 0)
    exact = naive_vit.in_float64(state)
    for pixels in examples(architecture):
        found = eager_tokens(architecture, state, pixels)
        naive_vit.assert_same(found, architecture, exact, pixels)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_graph_does_as_well(name: str, tmp_path: Path) -> None:
    architecture = Architecture(**PLAIN | COMBINATIONS[name])
    state = synthetic_state_dict(architecture, 0)
    graph, exact = Float32Graph(architecture, state, tmp_path), naive_vit.in_float64(state)
    for pixels in examples(architecture):
        naive_vit.assert_same(graph(pixels), architecture, exact, pixels)


def test_the_bundle_of_an_unusual_architecture_does_too(bundle_unusual: Path) -> None:
    architecture = UNUSUAL["patch16"]
    exact = naive_vit.in_float64(synthetic_state_dict(architecture, 0))
    with load(bundle_unusual, device="cpu", backend="onnxruntime", precision="fp32") as model:
        for pixels in examples(architecture):
            naive_vit.assert_same(model(pixels).outputs, architecture, exact, pixels)
