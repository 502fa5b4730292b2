"""Counts the matrix work of an exported graph as it runs, by parts of the model."""

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_HEADS = "heads."
"""What the names of a head's nodes begin with."""


def head_flops(graph: Path, pixels: np.ndarray) -> int:
    """Floating-point operations of the heads in `graph` for `pixels` [B, H, W, 3].

    2 for each multiply-add of a matrix product or convolution, as in `flops`, with the shapes that
    ONNX Runtime sees. Everything else is left out.
    """
    return sum(_node_flops(event["args"]) for event in _events(graph, pixels))


def _events(graph: Path, pixels: np.ndarray) -> Iterator[dict[str, Any]]:
    """The profile's records of the heads' nodes, of a run without any fusion."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its advice is about optimizations, which are off
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        session.run(None, {session.get_inputs()[0].name: pixels})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    for event in events:
        if event.get("cat") == "Node" and event["name"].startswith(_HEADS):
            yield event


def _node_flops(facts: dict[str, Any]) -> int:
    kind = facts["op_name"]
    if kind not in ("MatMul", "Conv"):
        return 0
    inputs, (output, *_) = map(_shapes, (facts["input_type_shape"], facts["output_type_shape"]))
    terms = inputs[0][-1] if kind == "MatMul" else math.prod(inputs[1][1:])
    return 2 * math.prod(output) * terms


def _shapes(described: list[dict[str, list[int]]]) -> list[list[int]]:
    return [shape for each in described for shape in each.values()]
