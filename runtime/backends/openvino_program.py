"""A graph that OpenVINO has compiled, and its one request."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends.openvino_bf16 import (
    PositionTables,
    keep_embedding,
    keep_norms,
    widen_convolutions,
)
from dinov2rt.runtime.backends.openvino_heads import Heads, heads_of

INT8_GROUP = 128
"""Channels of a token that share a scale where an int8 graph multiplies: see docs/adr/0009."""

_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16"}


class Program:
    """`model` compiled for the CPU; in bf16 some parts stay float32.

    `precision` is what everything in an int8 graph computes in, except its int8 products. Calls
    must not overlap. `rewrite` changes the form of `model` last.
    """

    def __init__(
        self,
        openvino: Any,
        model: Any,
        *,
        threads: int | None,
        precision: Precision,
        rewrite: Callable[[Any], None] | None = None,
    ) -> None:
        core = openvino.Core()
        self._tensor = openvino.Tensor
        self._inputs = {value.get_any_name() for value in model.inputs}
        self.positions: PositionTables | None = None
        self.heads: Heads | None = None
        if precision is Precision.BF16:
            self.heads = heads_of(core, model, options(threads, Precision.FP32))
            keep_norms(model)
            widen_convolutions(model)
            keep_embedding(model)
        if rewrite is not None:
            rewrite(model)
        if precision is Precision.BF16 and model.is_dynamic():  # else the table is a constant
            self.positions = PositionTables(core, model, options(threads, Precision.FP32))
        compiled = core.compile_model(model, "CPU", options(threads, precision))
        self.request: Any = compiled.create_infer_request()

    def run(
        self, feed: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """The outputs that are asked for, copied.

        Raises:
            ValueError: an input is missing.
        """
        if missing := self._inputs - feed.keys():  # OpenVINO would reuse the last call's
            raise ValueError(f"inputs {sorted(missing)} are missing")
        tables = {} if self.positions is None else self.positions.of(feed)
        # A tensor shares the memory of its array without keeping it alive: the arrays, some of them
        # copies made here, have to outlive `infer`. It takes no read-only one.
        arrays = {
            name: np.require(value, requirements=("C", "W"))
            for name, value in {**feed, **tables}.items()
        }
        tensors = {name: self._tensor(array, shared_memory=True) for name, array in arrays.items()}
        for name, tensor in tensors.items():
            self.request.set_tensor(name, tensor)
        self.request.infer()
        of_heads = [name for name in outputs if self.heads and name in self.heads.names]
        own = [name for name in outputs if name not in of_heads]
        got = {name: self.request.get_tensor(name).data.copy() for name in own}
        if self.heads and of_heads:
            got |= self.heads.run(self.request, {name: tensors[name] for name in feed}, of_heads)
        return got


def options(threads: int | None, precision: Precision) -> dict[str, str]:
    """Properties with which OpenVINO compiles."""
    told = {
        "PERFORMANCE_HINT": "LATENCY",
        # Otherwise a CPU that has bfloat16 computes in it, which is no float32.
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # For weights that are int8; no other product is touched.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(INT8_GROUP),
        # Every process pins its threads to the same first cores, however many processes there are.
        "ENABLE_CPU_PINNING": "NO",
    }
    return told if threads is None else told | {"INFERENCE_NUM_THREADS": str(threads)}
