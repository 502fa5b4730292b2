"""Attention as products in OpenVINO."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset1, opset13

from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends import openvino_attention
from dinov2rt.runtime.backends.openvino import OpenVinoBackend, cannot_run_bf16
from dinov2rt.runtime.backends.openvino_attention import expand_attention
from dinov2rt.runtime.cpu import is_x86

ATTENTION = "ScaledDotProductAttention"
needs_x86 = pytest.mark.skipif(not is_x86(), reason="only graphs on x86 are changed")
PRECISIONS = [
    Precision.FP32,
    pytest.param(
        Precision.BF16,
        marks=pytest.mark.skipif(cannot_run_bf16() is not None, reason="this CPU has no bfloat16"),
    ),
]


def images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def transposed_keys(backend: OpenVinoBackend, pixels: NDArray[np.uint8]) -> int:
    """How many transpositions bring keys [B, N, 6, 64] to [B, 6, 64, N] in one go."""
    backend.prepare({"pixels": pixels})
    (program,) = backend._fixed.values()
    graph = program.request.get_compiled_model().get_runtime_model()
    return sum(
        str(node.get_rt_info()["layerType"].value) == "Transpose"
        and node.get_output_partial_shape(0).to_shape()[1:3] == [6, 64]
        for node in graph.get_ordered_ops()
        if node.get_output_partial_shape(0).rank.get_length() == 4
    )


@needs_x86
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(1, 14, 28), (2, 56, 84), (1, 224, 224)], ids=str)
def test_it_changes_no_bit(
    shape: tuple[int, ...],
    precision: Precision,
    bundle_s_reg: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed = {"pixels": images(*shape)}
    names = ("cls_token", "register_tokens", "patch_tokens")

    def outputs() -> list[dict[str, NDArray[Any]]]:
        backend = OpenVinoBackend(bundle_s_reg / "fp32.onnx", threads=1, precision=precision)
        any_shape = backend.infer(feed, names)
        backend.prepare(feed)
        return [any_shape, backend.infer(feed, names)]

    expanded = outputs()
    monkeypatch.setattr("dinov2rt.runtime.backends.openvino.expand_attention", lambda _: None)
    for got, want in zip(expanded, outputs(), strict=True):
        for name in names:
            np.testing.assert_array_equal(got[name], want[name])


@needs_x86
def test_as_many_tokens_as_heads_are_not_mixed_up(bundle_s_reg: Path) -> None:
    """One CLS token, four registers and one patch: [B, 6, 6, 64], in whatever order."""
    feed = {"pixels": images(2, 14, 14)}
    backend = OpenVinoBackend(bundle_s_reg / "fp32.onnx", threads=1)
    want = backend.infer(feed, ["cls_token"])["cls_token"]
    backend.prepare(feed)
    got = backend.infer(feed, ["cls_token"])["cls_token"]
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)


@needs_x86
@pytest.mark.parametrize("precision", PRECISIONS)
def test_keys_are_not_transposed_to_columns_of_tokens(
    precision: Precision, bundle_s: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> OpenVinoBackend:
        return OpenVinoBackend(bundle_s / "fp32.onnx", threads=1, precision=precision)

    assert transposed_keys(opened(), images(1, 56, 84)) == 0
    monkeypatch.setattr("dinov2rt.runtime.backends.openvino.expand_attention", lambda _: None)
    assert transposed_keys(opened(), images(1, 56, 84)) == 12, "once a block, by OpenVINO itself"


@pytest.mark.parametrize(
    ("mask", "scale", "causal", "is_expanded"),
    [
        (np.float32(0), 1.0, False, True),
        (np.float32(0), 0.125, False, False),
        (np.zeros((1, 1, 4, 4), np.float32), 1.0, False, False),
        (np.float32(0), 1.0, True, False),
    ],
)
def test_only_attention_without_a_mask_or_a_scale_is_expanded(
    mask: NDArray[np.float32],
    scale: float,
    causal: bool,
    is_expanded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_attention, "is_x86", lambda: True)
    parts = [opset1.parameter([1, 2, 4, 8], np.float32) for _ in range(3)]
    node = opset13.scaled_dot_product_attention(
        *parts, opset1.constant(mask), opset1.constant(np.float32(scale)), causal=causal
    )
    model = openvino.Model([opset1.result(node)], parts, "attention")
    expand_attention(model)
    assert (ATTENTION not in kinds(model)) == is_expanded


def test_on_other_processors_nothing_changes(
    bundle_s: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_attention, "is_x86", lambda: False)
    model = openvino.Core().read_model(bundle_s / "fp32.onnx")
    expand_attention(model)
    assert kinds(model).count(ATTENTION) == 12
