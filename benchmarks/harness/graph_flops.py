"""Counts the matrix work of an exported graph as it runs, by parts of the model."""

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dinov2rt.benchmarks.harness.flops import HeadWork
from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.normalization import IMAGENET
from dinov2rt.bundle.signature import InputFormat

_OF_HEADS = re.compile(r"heads\.(?!\w+\.band_)")
"""The prefix of the names of a head's nodes, except nodes that turn scores into a class map."""


def head_flops(graph: Path, pixels: np.ndarray) -> int:
    """Floating-point operations of the heads in `graph` for `pixels` [B, H, W, 3].

    2 for each multiply-add of a matrix product or convolution, as in `flops`, with the shapes that
    ONNX Runtime sees. Everything else is left out, and so is the way from scores to class maps,
    which need not be made of products: see `bundle/tasks/class_map.py`.
    """
    return sum(_node_flops(event["args"]) for event in _events(graph, pixels))


def head_work(
    bundle: Path, pixels: NDArray[np.uint8], answers: Mapping[str, NDArray[Any]]
) -> HeadWork | None:
    """The heads' work for `pixels` [B, H, W, 3] and their `answers`; None without heads.

    Scores of segmentation heads are not counted: a candidate may leave them out.
    """
    manifest = Manifest.read(bundle)
    if not manifest.heads:
        return None
    graph, (batch, *sides, _) = manifest.graphs[0], pixels.shape
    snap = Snap.PAD if graph.pads else Snap.CROP
    return HeadWork(
        size=ImageSize(*sides).snapped(snap, manifest.architecture.patch_size),
        flops=batch * head_flops(bundle / graph.files[0].path, pixels[:1]),
        output_bytes=sum(answers[head.output].nbytes for head in manifest.heads),
    )


def _events(graph: Path, pixels: np.ndarray) -> Iterator[dict[str, Any]]:
    """The profile's records of the heads' nodes, of a run without any fusion."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its advice is about optimizations, which are off
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        session.run(None, {name: pixels if name == InputFormat.PIXELS else IMAGENET(pixels)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    for event in events:
        if event.get("cat") == "Node" and _OF_HEADS.match(event["name"]):
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
