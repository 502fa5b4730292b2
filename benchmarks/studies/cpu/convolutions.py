r"""Times products in OpenVINO as they are and as convolutions: see docs/adr/0018.

    python -m dinov2rt.benchmarks.studies.cpu.convolutions BUNDLE \
        [--cells 1x224,8x224,1x518 --turns 15]

Both forms of each graph are compiled for the shape of each cell, and take turns in one process. Of
an int8 graph, the products in bf16 become convolutions alone, and together with those in int8. The
result decides `are_convolutions_faster` and `INT8_TOKENS`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dinov2rt.benchmarks.studies.cpu.pixel_graphs import modes
from dinov2rt.benchmarks.studies.turns import Cell, parse_cells, ratios, shown, table
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import Dinov2rtError
from dinov2rt.export.crops import photo_crops
from dinov2rt.runtime.backends import openvino as backend
from dinov2rt.runtime.backends.openvino_attention import expand_attention
from dinov2rt.runtime.backends.openvino_convolutions import write_as_convolutions
from dinov2rt.runtime.backends.openvino_products import choose_product_library
from dinov2rt.runtime.backends.openvino_program import Program

_OUTPUTS = ("cls_token", "patch_tokens")
_ALL = sys.maxsize
_FORMS: dict[str, dict[str, Callable[[Any], None]]] = {
    "fp32": {"all": write_as_convolutions},
    "bf16": {"all": write_as_convolutions},
    "int8": {
        "those in bf16": partial(write_as_convolutions, int8_tokens=0),
        "all": partial(write_as_convolutions, int8_tokens=_ALL),
    },
}


def _call(
    graph: Path, precision: Precision, cell: Cell, rewrite: Callable[[Any], None] | None
) -> Callable[[], dict[str, Any]]:
    openvino = backend.import_openvino()
    batch, size = cell
    feed = {"pixels": photo_crops(range(batch), size)}
    model = openvino.Core().read_model(graph)
    choose_product_library(model, precision)
    expand_attention(model)
    model.reshape({name: list(value.shape) for name, value in feed.items()})
    program = Program(openvino, model, threads=None, precision=precision, rewrite=rewrite)
    return partial(program.run, feed, _OUTPUTS)


def time_table(bundle: Path, cells: Sequence[Cell], turns: int) -> str:
    """Time of convolutions over that of products, and the relative L2 between patch tokens."""
    rows = []
    for name, graph, precision in modes(bundle):
        columns = [_column(graph, precision, cell, _FORMS[name], turns) for cell in cells]
        rows += [
            [f"{name}, {form}", *(column[form] for column in columns)] for form in _FORMS[name]
        ]
    head = ["convolutions ÷ products", *(f"{batch} × {size}" for batch, size in cells)]
    return table(head, rows)


def _column(
    graph: Path,
    precision: Precision,
    cell: Cell,
    forms: dict[str, Callable[[Any], None]],
    turns: int,
) -> dict[str, str]:
    calls = {"products": _call(graph, precision, cell, None)}
    calls |= {form: _call(graph, precision, cell, rewrite) for form, rewrite in forms.items()}
    want = calls["products"]()["patch_tokens"]
    found = ratios(calls, turns)
    errors = {
        form: np.linalg.norm(calls[form]()["patch_tokens"] - want) / np.linalg.norm(want)
        for form in forms
    }
    return {form: f"{shown(found[form])}, relative L2 {errors[form]:.1e}" for form in forms}


def main() -> int:
    """Print the table; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="convolutions", description="time of products as convolutions over that of products"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--cells", default="1x224,8x224,1x518", help="BATCHxSIDE to time")
    parser.add_argument("--turns", type=int, default=15, help="calls of each (default: 15)")
    given = parser.parse_args()
    try:
        print(time_table(given.bundle, parse_cells(given.cells), given.turns))
    except Dinov2rtError as error:
        print(f"convolutions: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
