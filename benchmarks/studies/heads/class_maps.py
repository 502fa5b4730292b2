"""Measures the way from a segmentation head's scores to classes of pixels, in OpenVINO.

    python -m dinov2rt.benchmarks.studies.heads.class_maps BUNDLE [--size 224,518 --turns 20]

Times one image through the graph without its class map, with the graph's own, and with the one that
the runtime makes of candidates alone, in turns. BUNDLE has one segmentation head.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.harness.clock import timed
from dinov2rt.benchmarks.harness.photo_batch import photo_batch
from dinov2rt.benchmarks.studies.turns import parse_sizes, ratios, shown, table
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.heads import Task
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import scores_name
from dinov2rt.bundle.tasks.class_map import best_classes
from dinov2rt.errors import Dinov2rtError, InputError
from dinov2rt.runtime.backends.class_maps import without_class_maps
from dinov2rt.runtime.backends.openvino import import_openvino
from dinov2rt.runtime.backends.openvino_program import options
from dinov2rt.runtime.cpu import usable_cores

_HEADER = (
    "size",
    "scores of all pixels, MB",
    "graph's map",
    "runtime's map",
    "runtime's map alone, ms",
    "pixels of the same class",
)
Call = Callable[[], Any]


def measure(bundle: Path, size: ImageSize, *, threads: int, turns: int) -> list[str]:
    """One row of the table.

    Raises:
        InputError: the bundle has no segmentation head, or several.
    """
    graph, output = _graph_of(bundle)
    pixels = photo_batch(1, size)
    call = partial(_compiled, graph, pixels, threads)
    head, whole = call(has_map=False), call(has_map=True)

    def on_host() -> NDArray[np.uint8]:
        scores: NDArray[np.float32] = head()[scores_name(output)][0]
        return best_classes(scores, (size.height, size.width), threads)

    times = ratios({"scores": head, "graph": whole, "host": on_host}, turns)
    scores = np.array(head()[scores_name(output)][0])
    alone = median(timed(lambda: best_classes(scores, (size.height, size.width), threads))[0]
                   for _ in range(turns))  # fmt: skip
    same = np.mean(whole()[output][0] == on_host())
    megabytes = 4 * len(scores) * size.pixels / 1e6
    return [
        str(size), f"{megabytes:.0f}", shown(times["graph"]), shown(times["host"]),
        f"{alone:.1f}", f"{same:.3%}",
    ]  # fmt: skip


def _graph_of(bundle: Path) -> tuple[Path, str]:
    """The float32 graph, and the name of its class map."""
    manifest = Manifest.read(bundle)
    maps = [head.output for head in manifest.heads if head.task is Task.SEGMENTATION]
    if len(maps) != 1:
        raise InputError(f"{bundle} has {len(maps)} segmentation heads; give one with one of them")
    return bundle / manifest.graphs[0].files[0].path, maps[0]


def _compiled(graph: Path, pixels: NDArray[np.uint8], threads: int, *, has_map: bool) -> Call:
    """Calls the graph for `pixels`, compiled for their shape."""
    core = import_openvino().Core()
    model = core.read_model(graph)
    if not has_map:
        without_class_maps(model, threads)
    model.reshape({"pixels": list(pixels.shape)})
    compiled = core.compile_model(model, "CPU", options(threads, Precision.FP32))
    request = compiled.create_infer_request()
    return lambda: {
        key.get_any_name(): value for key, value in request.infer({"pixels": pixels}).items()
    }


def main() -> int:
    """Print a table of times over the graph without its map; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="class_maps", description="what class maps cost on a CPU")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--size", default="224,518", help="sides in pixels (default: 224,518)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all cores")
    parser.add_argument("--turns", type=int, default=20, help="calls of each (default: 20)")
    given = parser.parse_args()
    try:
        rows = [
            measure(given.bundle, size, threads=given.threads, turns=given.turns)
            for size in parse_sizes(given.size)
        ]
    except Dinov2rtError as error:
        print(f"class_maps: {error}", file=sys.stderr)
        return error.exit_status
    print(table(_HEADER, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
