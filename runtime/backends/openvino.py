"""The OpenVINO backend, for CPUs."""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError, InputError
from dinov2rt.optional import is_older, require
from dinov2rt.runtime.backends.class_maps import without_class_maps
from dinov2rt.runtime.backends.openvino_attention import expand_attention
from dinov2rt.runtime.backends.openvino_bf16 import mixes_up_heads
from dinov2rt.runtime.backends.openvino_convolutions import (
    Kernels,
    are_convolutions_faster,
    write_as_convolutions,
)
from dinov2rt.runtime.backends.openvino_products import choose_product_library
from dinov2rt.runtime.backends.openvino_program import Program
from dinov2rt.runtime.cpu import is_x86, this_cpu, usable_cores

FIXED_SHAPES = 4
"""Compiled for one shape alone, at most: each takes about as much memory as the weights."""

_Shapes = tuple[tuple[str, tuple[int, ...]], ...]

_LEAST_VERSION = (2026, 2)
"""The minimum of the extra `openvino`; another package may have installed an older version."""

_TELEMETRY = "openvino_telemetry"
# sys.modules is shared by all threads; the lock keeps them from overwriting each other's changes.
_import_lock = threading.Lock()
_PADS = ("pads_begin", "pads_end")
_NO_PADS = np.zeros(8, np.int64)


def import_openvino() -> ModuleType:
    """Import the library so that it sends no telemetry.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    with _import_lock:
        # Without this package OpenVINO uses a stub. The only other way is a file in ~/intel.
        before = sys.modules.get(_TELEMETRY)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            return require("openvino", extra="openvino", purpose="the OpenVINO backend")
        finally:
            del sys.modules[_TELEMETRY]
            if before is not None:
                sys.modules[_TELEMETRY] = before


def cannot_run() -> str | None:
    """Why OpenVINO cannot run here, or None if it can."""
    try:
        openvino = import_openvino()
    except ImportError as error:
        return str(error)
    if is_older(openvino.__version__, _LEAST_VERSION):
        return (
            f"openvino {_release(openvino)} is older than {'.'.join(map(str, _LEAST_VERSION))}, "
            "and its results were not tested; pip install -U 'dinov2rt[openvino]'"
        )
    return None


def cannot_run_int8() -> str | None:
    """Why int8 graphs are not faster than float32 in OpenVINO here, or None if they are.

    If the instruction sets of an x86 are unknown, as on Windows and macOS, int8 is allowed.
    """
    cpu = this_cpu()
    if is_x86() and (cpu.multiplies_bytes or not cpu.instruction_sets_known):
        return cannot_run()
    return (
        f"{cpu.model} has no VNNI, without which OpenVINO computes int8 graphs in float32, slower "
        'than float32 ones; use precision="fp32"'
    )


def cannot_run_bf16() -> str | None:
    """Why OpenVINO cannot run a float32 graph in bfloat16 any faster here, or None where it can.

    Where the system does not name the instruction sets, as on Windows and macOS, OpenVINO is asked.
    """
    if (reason := cannot_run()) is not None:
        return reason
    cpu = this_cpu()
    capable = cpu.multiplies_bf16 if cpu.instruction_sets_known else _claims_bf16()
    if is_x86() and capable:
        return None
    return (
        f"{cpu.model} has neither AVX512_BF16 nor AMX-BF16, without which bfloat16 is no faster "
        'than float32; use precision="fp32"'
    )


def _claims_bf16() -> bool:
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoBackend:
    """One float32 or int8 graph, and requests for it, which calls take in turn.

    OpenVINO gives all of its threads to one call at a time anyway. `precision`, fp32 or bf16,
    is what everything but int8 products computes in.
    """

    concurrent_calls = 1
    reads_gpu_arrays = False

    def __init__(
        self, graph: Path, *, threads: int | None, precision: Precision = Precision.FP32
    ) -> None:
        self._openvino = import_openvino()
        self.description: str = f"openvino {_release(self._openvino)}, cpu"
        self._threads, self._precision = threads, precision
        self._lock = threading.Lock()
        self._fixed: OrderedDict[_Shapes, Program] = OrderedDict()
        self._kernels: Kernels = {}
        try:
            self._graph: Any = self._openvino.Core().read_model(graph)
            _check_operators(self._graph)
            self._maps = without_class_maps(self._graph, threads or usable_cores())
            choose_product_library(self._graph, precision)
            expand_attention(self._graph)
            any_shape = self._graph.clone()
            self._takes_padding = _expose_padding(any_shape)
            self._any_shape: Program | None = self._program(any_shape)
        except Exception as error:  # its errors share no base class
            raise BackendError(
                f"{self.description} cannot load {graph}: {_last_line(error)}"
            ) from error

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, device_outputs: bool = False
    ) -> dict[str, NDArray[Any]]:
        """Run the graph; see `Backend.infer`."""
        if device_outputs:
            raise InputError("openvino returns numpy arrays; device outputs need a plan")
        values = self._run(inputs, self._maps.sources(outputs))
        return self._maps.completed(values, outputs, inputs)

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        shapes = _shapes(inputs)
        with self._lock:
            if self._any_shape is None:
                raise BackendError("the model is closed; load it again")
            try:
                if shapes in self._fixed:
                    self._fixed.move_to_end(shapes)
                    return self._fixed[shapes].run(inputs, outputs)
                return self._any_shape.run(self._feed(inputs), outputs)
            except Exception as error:  # its errors share no base class
                listed = ", ".join(f"{name} {list(np.shape(inputs[name]))}" for name in inputs)
                raise BackendError(
                    f"{self.description} failed on {listed}: {_last_line(error)}"
                ) from error

    def prepare(self, inputs: Mapping[str, Any]) -> None:
        """Compile the graph for the shapes of `inputs` alone; see `ShapePreparer`.

        Calls of other threads go on meanwhile. Each compiled shape holds the matrices in a form of
        its own: OpenVINO shares them between the calls of one compiled model, not between models.
        """
        shapes = _shapes(inputs)
        with self._lock:
            if self._any_shape is None:
                raise BackendError("the model is closed; load it again")
            if shapes in self._fixed:
                self._fixed.move_to_end(shapes)
                return
            model = self._graph.clone()
            model.reshape({name: list(shape) for name, shape in shapes})
            if self._precision is Precision.BF16 and mixes_up_heads(model):
                return  # the program of any shape goes on serving this one
            while len(self._fixed) >= FIXED_SHAPES:
                self._fixed.popitem(last=False)
        rewrite = None
        if are_convolutions_faster(model, self._precision):
            rewrite = partial(write_as_convolutions, kernels=self._kernels)
        program = self._program(model, rewrite=rewrite)
        with self._lock:
            if self._any_shape is not None:  # not closed meanwhile
                self._fixed[shapes] = program

    def batch_limit(self, size: ImageSize) -> int | None:  # noqa: ARG002
        """None: any batch that fits into memory."""
        return None

    def close(self) -> None:
        """Free the compiled models, once a call that runs has ended."""
        with self._lock:
            self._any_shape = self._graph = None
            self._fixed.clear()
            self._kernels.clear()

    def _program(self, model: Any, rewrite: Callable[[Any], None] | None = None) -> Program:
        return Program(
            self._openvino,
            model,
            threads=self._threads,
            precision=self._precision,
            rewrite=rewrite,
        )

    def _feed(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        feed = dict(inputs)
        if self._takes_padding:
            pads = feed.pop("padding", _NO_PADS)
            feed |= zip(_PADS, np.split(pads, 2), strict=True)
        return feed


def _shapes(inputs: Mapping[str, Any]) -> _Shapes:
    """The shapes of `inputs` by name; padding is one input more than prepared calls have."""
    return tuple((name, tuple(np.shape(value))) for name, value in inputs.items())


def _release(openvino: ModuleType) -> str:
    """OpenVINO's version without build number and commit, such as "2026.4.1"."""
    return str(openvino.__version__).partition("-")[0]


def _check_operators(model: Any) -> None:
    if any(node.get_type_name() == "Abs" for node in model.get_ops()):  # see docs/adr/0008
        raise ValueError("it holds Abs, which OpenVINO computes wrongly; export the bundle again")


def _expose_padding(model: Any) -> bool:
    """Turn the padding of the graph, if it has any, into inputs; return whether it has.

    When OpenVINO reads an ONNX graph, it turns an optional input into a constant.
    """
    from openvino import opset1  # imported before, by import_openvino

    pad = next((node for node in model.get_ops() if node.get_type_name() == "Pad"), None)
    if pad is None or pad.input_value(1).get_node().get_type_name() != "Constant":
        return False  # a graph that computes its own padding takes none
    parameters = [opset1.parameter([4], np.int64, name) for name in _PADS]
    for index, (name, parameter) in enumerate(zip(_PADS, parameters, strict=True), start=1):
        parameter.output(0).set_names({name})
        pad.input(index).replace_source_output(parameter.output(0))
    model.add_parameters(parameters)
    model.validate_nodes_and_infer_types()
    return True


def _last_line(error: Exception) -> str:
    """The last line of OpenVINO's message; the lines before are places in its sources."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
