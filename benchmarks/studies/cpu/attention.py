r"""Times graphs in OpenVINO with attention as one operator and as products: see docs/adr/0008.

    python -m dinov2rt.benchmarks.studies.cpu.attention BUNDLE \
        [--cells 1x224,8x224,1x518 --turns 15]

For each precision of the bundle that runs here, both forms are compiled for the shape of each cell
and for any shape. They take turns in one process. The study also says whether their tokens are
equal.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.studies.cpu.pixel_graphs import modes
from dinov2rt.benchmarks.studies.turns import Cell, parse_cells, ratios, shown, table
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import Dinov2rtError
from dinov2rt.export.crops import photo_crops
from dinov2rt.runtime.backends import openvino as backend
from dinov2rt.runtime.backends.openvino_attention import expand_attention
from dinov2rt.runtime.backends.openvino_products import choose_product_library
from dinov2rt.runtime.backends.openvino_program import Program

_OUTPUTS = ("cls_token", "patch_tokens")
_NO_PADS = dict.fromkeys(("pads_begin", "pads_end"), np.zeros(4, np.int64))


def _call(
    graph: Path, precision: Precision, cell: Cell, *, is_expanded: bool, is_known: bool
) -> Callable[[], dict[str, Any]]:
    """A call of `graph`, with or without `expand_attention`."""
    openvino = backend.import_openvino()
    batch, size = cell
    feed: dict[str, NDArray[Any]] = {"pixels": photo_crops(range(batch), size)}
    model = openvino.Core().read_model(graph)
    choose_product_library(model, precision)
    if is_expanded:
        expand_attention(model)
    if is_known:
        model.reshape({name: list(value.shape) for name, value in feed.items()})
    elif backend._expose_padding(model):
        feed |= _NO_PADS
    return partial(Program(openvino, model, threads=None, precision=precision).run, feed, _OUTPUTS)


def time_table(bundle: Path, cells: Sequence[Cell], turns: int) -> str:
    """Time of the expanded form over that of the operator, the median and its 95 % interval."""
    rows = []
    for name, graph, precision in modes(bundle):
        for is_known in (False, True):
            row = [f"{name}, shapes known" if is_known else name]
            for cell in cells:
                operator, expanded = (
                    _call(graph, precision, cell, is_expanded=each, is_known=is_known)
                    for each in (False, True)
                )
                ratio = ratios({"operator": operator, "expanded": expanded}, turns)["expanded"]
                want, got = operator(), expanded()
                is_equal = all(np.array_equal(want[each], got[each]) for each in _OUTPUTS)
                row.append(shown(ratio) + ("" if is_equal else ", other tokens"))
            rows.append(row)
    head = ["expanded ÷ operator", *(f"{batch} × {size}" for batch, size in cells)]
    return table(head, rows)


def main() -> int:
    """Print the table; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="attention", description="time of attention as products over that of one operator"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--cells", default="1x224,8x224,1x518", help="BATCHxSIDE to time")
    parser.add_argument("--turns", type=int, default=15, help="calls of each (default: 15)")
    given = parser.parse_args()
    try:
        print(time_table(given.bundle, parse_cells(given.cells), given.turns))
    except Dinov2rtError as error:
        print(f"attention: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
