"""Weights may hold any values: the whole export of a toy variant with equal and empty tensors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dinov2rt.bundle.entries import WeightsEntry
from dinov2rt.bundle.variants import Variant
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.weights.checkpoint import Weights
from dinov2rt.export.weights.state_dict import StateDict
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.runtime.model import load

Edit = Callable[[StateDict], None]


def zero_biases(state: StateDict) -> None:
    """What `Dinov2Model(config).save_pretrained` writes.

    The synthetic norms live with the massive activations that a bias brings in; without it they
    are scaled back, or attention is so peaked that float32 itself is too coarse.
    """
    for key, value in state.items():
        if key.endswith(".bias"):
            value.zero_()
        elif "norm" in key:
            value /= value.mean()


def fresh_norms(state: StateDict) -> None:
    zero_biases(state)
    for key, value in state.items():
        if "norm" in key and key.endswith(".weight"):
            value.fill_(1)


def equal_tensors(state: StateDict) -> None:
    """All tensors of one shape hold the same values."""
    first: dict[torch.Size, torch.Tensor] = {}
    for value in state.values():
        value.copy_(first.setdefault(value.shape, value))


def one_block_for_all(state: StateDict) -> None:
    for key, value in state.items():
        if key.startswith("blocks.1."):
            value.copy_(state[key.replace("blocks.1.", "blocks.0.")])


def block_of_zeros(state: StateDict) -> None:
    """The block passes its input on, through products whose weights are all zero."""
    zero_biases(state)
    for key, value in state.items():
        if key.startswith("blocks.0.") and "norm" not in key:
            value.zero_()


def zero_layer_scale(state: StateDict) -> None:
    for key, value in state.items():
        if key.endswith(".gamma"):
            value.zero_()


def layer_scale_of_one(state: StateDict) -> None:
    for key, value in state.items():
        if key.endswith(".gamma"):
            value.fill_(1)


@pytest.mark.parametrize(
    "name", ["dinov2_vits14", pytest.param("dinov2_vitg14_reg", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "edit",
    [
        zero_biases,
        pytest.param(fresh_norms, marks=pytest.mark.slow),
        equal_tensors,
        one_block_for_all,
        pytest.param(block_of_zeros, marks=pytest.mark.slow),
        zero_layer_scale,
        pytest.param(layer_scale_of_one, marks=pytest.mark.slow),
    ],
)
def test_the_export_agrees_with_eager(
    name: str,
    edit: Edit,
    toy_variant: Callable[[str], Variant],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variant = toy_variant(name)
    state = synthetic_state_dict(variant, 0)
    edit(state)
    weights = Weights(state, variant, WeightsEntry("synthetic:0", "0" * 64))
    monkeypatch.setattr("dinov2rt.export.exporter.load_weights", lambda *_: weights)
    bundle = tmp_path / "toy"
    export_bundle(variant, "synthetic:0", bundle, ExportOptions())
    for precision in ("fp32", "fp16"):
        with load(bundle, device="cpu", backend="onnxruntime", precision=precision) as model:
            report = model.verify()
        assert report, report
