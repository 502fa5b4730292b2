"""Finds the opset and the form of attention that ONNX Runtime's CPU provider runs fastest.

    python -m dinov2rt.benchmarks.studies.attention_forms dinov2_vits14 dinov2_vitb14

All forms of a variant are timed in turns, so that other work on the machine affects them alike. The
table shows ratios of medians; the result is in docs/adr/0004.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from dinov2rt.bundle.signature import OPSET
from dinov2rt.bundle.variants import Variant, find_variant
from dinov2rt.export.folding import fold
from dinov2rt.export.graph import ExportGraph, GraphBlock
from dinov2rt.export.trace import trace
from dinov2rt.export.weights.synthetic import synthetic_state_dict

SHAPES = ((1, 224), (8, 224), (1, 518), (4, 518))


def explicit(variant: Variant, opset: int) -> ir.Model:
    """Attention as MatMul, Softmax and MatMul."""
    graph = _graph(variant)
    for block in graph.blocks:
        block._attend = MethodType(_attend_explicitly, block)  # type: ignore[assignment]
    return trace(graph, opset=opset)


def operator_4d(variant: Variant) -> ir.Model:
    """One `Attention` per block on [B, heads, N, head_dim], as the exporter writes it."""
    return trace(_graph(variant))


def operator_3d(variant: Variant) -> ir.Model:
    """One `Attention` per block on [B, N, D]; the operator splits the heads."""
    model = trace(_graph(variant))
    for attention in [node for node in model.graph if node.op_type == "Attention"]:
        (transpose,) = attention.outputs[0].consumers()
        (joined,) = transpose.outputs[0].consumers()
        flat = ir.node(
            "Attention",
            [_unsplit(value) for value in attention.inputs[:3]],
            {"q_num_heads": variant.num_heads, "kv_num_heads": variant.num_heads},
            name=f"{attention.name}_3d",
        )
        flat.outputs[0].name = f"{attention.outputs[0].name}_3d"
        model.graph.insert_before(joined, flat)
        ir.convenience.replace_all_uses_with(joined.outputs[0], flat.outputs[0])
    RemoveUnusedNodesPass()(model)
    return model


FORMS: dict[str, Callable[[Variant], ir.Model]] = {
    "explicit, opset 20": lambda variant: explicit(variant, 20),
    f"explicit, opset {OPSET}": lambda variant: explicit(variant, OPSET),
    f"Attention 4-D, opset {OPSET}": operator_4d,
    f"Attention 3-D, opset {OPSET}": operator_3d,
}


def main() -> int:
    """Time every form at every shape and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="+", type=find_variant)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    print("| variant | batch × side | " + " | ".join(FORMS) + " |")
    print("| --- " * (2 + len(FORMS)) + "|")
    for variant in arguments.variants:
        sessions = {name: _session(form(variant), variant) for name, form in FORMS.items()}
        for batch, side in SHAPES:
            medians = _interleaved(sessions, batch, side, arguments.repeats)
            base = next(iter(medians.values()))
            cells = " | ".join(f"{base / median:.2f}" for median in medians.values())
            print(f"| {variant.name} | {batch} × {side} | {cells} |", flush=True)
    return 0


def _interleaved(
    sessions: dict[str, ort.InferenceSession], batch: int, side: int, repeats: int
) -> dict[str, float]:
    images = np.random.default_rng(0).standard_normal((batch, 3, side, side), dtype=np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(repeats + 2):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"images": images})
            if turn >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def _session(model: ir.Model, variant: Variant) -> ort.InferenceSession:
    fold(model, variant)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        ir.save(model, path, external_data="graph.onnx.data")
        return ort.InferenceSession(path)


def _graph(variant: Variant) -> ExportGraph:
    return ExportGraph(variant, synthetic_state_dict(variant, 0)).eval()


def _attend_explicitly(block: GraphBlock, tokens: Tensor) -> Tensor:
    query, key, value = (block._heads(part) for part in block.qkv(tokens).chunk(3, dim=-1))
    # No scale here: it is folded into the query weights, as fold() does for `Attention`.
    weights = torch.softmax(query @ key.transpose(2, 3), dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def _unsplit(value: ir.Value | None) -> ir.Value | None:
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("Transpose", "Reshape"):
            break
        value = node.inputs[0]
    return value


if __name__ == "__main__":
    raise SystemExit(main())
