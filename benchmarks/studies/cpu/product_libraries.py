r"""Times the float32 graph in OpenVINO with matrix products by oneDNN, by MLAS, or by its choice.

    python -m dinov2rt.benchmarks.studies.cpu.product_libraries BUNDLE \
        [--cells 1x224,8x224,1x518 --turns 15]

All forms are compiled for the shape of each cell, and take turns in one process. The result decides
`choose_product_library` for a CPU: see docs/adr/0008.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dinov2rt.benchmarks.studies.cpu.pixel_graphs import pixel_graphs
from dinov2rt.benchmarks.studies.turns import Cell, parse_cells, ratios, shown, table
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import Dinov2rtError
from dinov2rt.export.crops import photo_crops
from dinov2rt.runtime.backends import openvino as backend
from dinov2rt.runtime.backends import openvino_products
from dinov2rt.runtime.backends.openvino_program import Program

_OUTPUTS = ("cls_token", "patch_tokens")
_FORMS: dict[str, Callable[[Any], None]] = {
    "OpenVINO's choice": lambda _: None,
    "oneDNN": openvino_products.choose_onednn,
    "MLAS": openvino_products.choose_mlas,
    "dinov2rt's choice": partial(
        openvino_products.choose_product_library, precision=Precision.FP32
    ),
}


def time_table(graph: Path, cells: list[Cell], turns: int) -> str:
    """Time over that with OpenVINO's own choice, the median and its 95 % interval."""
    openvino = backend.import_openvino()
    columns = []
    for batch, size in cells:
        feed = {"pixels": photo_crops(range(batch), size)}
        calls: dict[str, Callable[[], object]] = {}
        for name, choose in _FORMS.items():
            model = openvino.Core().read_model(graph)
            choose(model)
            model.reshape({name: list(value.shape) for name, value in feed.items()})
            program = Program(openvino, model, threads=None, precision=Precision.FP32)
            calls[name] = partial(program.run, feed, _OUTPUTS)
        columns.append(ratios(calls, turns))
    head = ["products by", *(f"{batch} × {size}" for batch, size in cells)]
    return table(head, [[name, *(shown(column[name]) for column in columns)] for name in _FORMS])


def main() -> int:
    """Print the table; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="product_libraries", description="time of float32 products by oneDNN and by MLAS"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--cells", default="1x224,8x224,1x518", help="BATCHxSIDE to time")
    parser.add_argument("--turns", type=int, default=15, help="calls of each (default: 15)")
    given = parser.parse_args()
    try:
        file = pixel_graphs(given.bundle)[Precision.FP32]
        print(time_table(file, parse_cells(given.cells), given.turns))
    except Dinov2rtError as error:
        print(f"product_libraries: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
