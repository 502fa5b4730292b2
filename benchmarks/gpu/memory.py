"""Measures whether dinov2rt's GPU memory is bounded by the largest shape, however many come.

    python -m dinov2rt.benchmarks.gpu.memory BUNDLE

One process loads the bundle on ONNX Runtime CUDA and warms up the largest shape, then 15 others,
twice. It prints a JSON document: MiB of the weights' files, MiB of GPU memory after each step, and
the last over that of the largest shape.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dinov2rt.errors import BundleError, Dinov2rtError
from dinov2rt.runtime.gpu.cuda import call
from dinov2rt.runtime.model import Model, load

_MIB = 2**20
LARGEST = (8, 518, 518)
SHAPES = tuple((1 + k % 4, 14 * (8 + k), 14 * (30 - k)) for k in range(15))
"""Fifteen shapes of other batches and sizes, each smaller than the largest."""


def measure(model: Model, used_mib: Callable[[], float]) -> dict[str, float]:
    """Memory by step, and the ratio of the last to that of the largest shape.

    Args:
        model: on a GPU that no other process uses.
        used_mib: the GPU memory in use, MiB.
    """
    used = {"loaded_mib": used_mib()}
    model.warm_up([LARGEST])
    used["largest_shape_mib"] = used_mib()
    for _ in range(2):
        model.warm_up(SHAPES)
    used["sixteen_shapes_mib"] = used_mib()
    return used | {"ratio": used["sixteen_shapes_mib"] / used["largest_shape_mib"]}


def weights_mib(model: Model) -> float:
    """Size of the files of the graph that `model` runs."""
    return sum(file.size_bytes for file in model.graph.files) / _MIB


def _used_mib(before: int) -> float:
    free, _ = call("cudaMemGetInfo")
    return float(before - free) / _MIB


def run(bundle: Path) -> Mapping[str, Any]:
    """Load `bundle` and measure.

    Raises:
        BackendError: there is no GPU, or the bundle cannot run on it.
        BundleError: it has no fused graph.
    """
    call("cudaFree", 0)  # creates the context, whose memory is not the model's
    free, _ = call("cudaMemGetInfo")
    with load(bundle, device="cuda", backend="onnxruntime", precision="fp16") as model:
        if model.graph != model.manifest.cuda_graph:
            raise BundleError(f"{bundle} has no graph for ONNX Runtime CUDA")
        memory = measure(model, lambda: _used_mib(free))
        return {"variant": model.manifest.name, "weights_mib": weights_mib(model), **memory}


def main() -> int:
    """Print the document; the exit status is 0, or the error's."""
    parser = argparse.ArgumentParser(prog="memory", description="GPU memory after many shapes")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    given = parser.parse_args()
    try:
        print(json.dumps(run(given.bundle)))
    except Dinov2rtError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
