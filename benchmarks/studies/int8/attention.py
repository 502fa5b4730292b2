r"""Measures whether attention gains from int8 operands in OpenVINO, on this CPU.

    python -m dinov2rt.benchmarks.studies.int8.attention VARIANT \
        [--cells 1x224,8x224,1x518 --turns 25]

One block's `qkv` product, attention and `proj` product run alone, with everything in fp32, with
everything in bf16, and with int8 operands of the scores, or of both products of attention, and the
rest in bf16. A byte has one fixed scale for the tensor, as OpenVINO's kernel requires; its range is
that of the very tokens that are timed, which is the best case. Tokens are normal, and weights are
such that logits have a standard deviation of 2. The error is relative to the first form.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.benchmarks.statistics import Interval
from dinov2rt.benchmarks.studies.turns import Cell, parse_cells, ratios, shown, table
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import Dinov2rtError
from dinov2rt.runtime.backends.openvino import import_openvino
from dinov2rt.runtime.backends.openvino_program import options

_LOGITS = 2.0
_LEVELS = 256
_SPREAD = 6.0
"""Operands are within six standard deviations."""

FORMS: dict[str, tuple[Precision, tuple[str, ...]]] = {
    "fp32": (Precision.FP32, ()),
    "bf16": (Precision.BF16, ()),
    "int8 scores, the rest in bf16": (Precision.BF16, ("query", "key")),
    "int8 scores and sums, the rest in bf16": (
        Precision.BF16,
        ("query", "key", "weights", "value"),
    ),
}
"""The precision of everything else, and the operands that are int8."""


def attention(architecture: Architecture, int8: Sequence[str]) -> Any:
    """The part of a block, as an OpenVINO model of tokens [B, N, D]; `int8` names operands."""
    from openvino import Model, opset13

    width, heads = architecture.embed_dim, architecture.num_heads
    generator = np.random.default_rng(0)

    def rounded(name: str, value: Any, low: float, high: float) -> Any:
        if name not in int8:
            return value
        ends = [np.float32(low), np.float32(high)]
        return opset13.fake_quantize(value, *ends, *ends, _LEVELS)

    def product(tokens: Any, gain: float) -> Any:
        weight = generator.standard_normal((width, width)) * gain / np.sqrt(width)
        return opset13.matmul(tokens, opset13.constant(weight.astype(np.float32)), False, False)

    def operand(name: str, tokens: Any, gain: float) -> Any:
        split = opset13.reshape(
            product(tokens, gain), np.array([0, 0, heads, architecture.head_dim]), special_zero=True
        )
        by_head = opset13.transpose(split, np.array([0, 2, 1, 3]))
        return rounded(name, by_head, -_SPREAD * gain, _SPREAD * gain)

    tokens = opset13.parameter([-1, -1, width], np.float32, "tokens")
    gain = np.sqrt(
        _LOGITS / np.sqrt(architecture.head_dim)
    )  # of q and k, so that their products fit
    query, key = operand("query", tokens, gain), operand("key", tokens, gain)
    scores = opset13.matmul(query, key, False, True)
    weights = rounded("weights", opset13.softmax(scores, -1), 0.0, 1.0)
    averaged = opset13.matmul(weights, operand("value", tokens, 1.0), False, False)
    joined = opset13.reshape(
        opset13.transpose(averaged, np.array([0, 2, 1, 3])),
        np.array([0, 0, width]),
        special_zero=True,
    )
    return Model([opset13.result(product(joined, 1.0))], [tokens])


def _error(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def measure(architecture: Architecture, cells: Sequence[Cell], turns: int) -> str:
    """A table of times over that of fp32, and of errors at the first cell."""
    core = import_openvino().Core()
    requests = {
        name: core.compile_model(
            attention(architecture, int8), "CPU", options(None, precision)
        ).create_infer_request()
        for name, (precision, int8) in FORMS.items()
    }

    def run(request: Any, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        request.infer([tokens])
        result: NDArray[np.float32] = request.get_output_tensor().data.copy()
        return result

    columns: list[Mapping[str, Interval]] = []
    errors: dict[str, float] = {}
    for batch, size in cells:
        count = architecture.num_prefix_tokens + size.grid(architecture.patch_size).num_patches
        shape = (batch, count, architecture.embed_dim)
        tokens = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
        calls = {name: partial(run, request, tokens) for name, request in requests.items()}
        if not errors:
            errors = {name: _error(call(), calls["fp32"]()) for name, call in calls.items()}
        columns.append(ratios(calls, turns))
    head = ["qkv, attention, proj", "error", *(f"{batch} × {size}" for batch, size in cells)]
    rows = [
        [name, f"{errors[name]:.1e}", *(shown(column[name]) for column in columns)]
        for name in requests
    ]
    return table(head, rows)


def main() -> int:
    """Print the table; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="int8.attention", description="time and error of attention with int8 operands"
    )
    parser.add_argument("variant", metavar="VARIANT")
    parser.add_argument("--cells", default="1x224,8x224,1x518", help="BATCHxSIDE to time")
    parser.add_argument("--turns", type=int, default=25, help="calls of each (default: 25)")
    given = parser.parse_args()
    try:
        print(
            measure(find_variant(given.variant).architecture, parse_cells(given.cells), given.turns)
        )
    except Dinov2rtError as error:
        print(f"int8.attention: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
