"""The OpenVINO backend, for CPUs."""

import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError, InputError
from dinov2rt.optional import is_older, require
from dinov2rt.runtime.backends.openvino_bf16 import PositionTables, keep_norms
from dinov2rt.runtime.cpu import is_x86, this_cpu

INT8_GROUP = 128
"""Channels of a token that share a scale in the products of an int8 graph: see docs/adr/0009."""

_LEAST_VERSION = (2026, 2)
"""The minimum of the extra `openvino`; another package may have installed an older version."""

_HINTS = {Precision.FP32: "f32", Precision.INT8: "f32", Precision.BF16: "bf16"}

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
    """One compiled model of a float32 or int8 graph, with one request; calls are serialized.

    OpenVINO gives all of its threads to one call at a time anyway. In bf16 it is the float32 graph.
    """

    concurrent_calls = 1
    reads_gpu_arrays = False

    def __init__(
        self, graph: Path, *, threads: int | None, precision: Precision = Precision.FP32
    ) -> None:
        openvino = import_openvino()
        self.description = f"openvino {_release(openvino)}, cpu"
        self._tensor = openvino.Tensor
        self._lock = threading.Lock()
        self._positions: PositionTables | None = None
        options = _options(threads, precision)
        try:
            core = openvino.Core()
            model = core.read_model(graph)
            _check_operators(model)
            self._takes_padding = _expose_padding(model)
            if "AVX-512" in this_cpu().instruction_sets:  # elsewhere it was not measured
                _steer_products(model)
            self._inputs = {value.get_any_name() for value in model.inputs}
            if precision is Precision.BF16:
                keep_norms(model)
                in_float32 = _options(threads, Precision.FP32)
                self._positions = PositionTables(core, model, in_float32)
            compiled = core.compile_model(model, "CPU", options)
            self._request: Any = compiled.create_infer_request()
        except Exception as error:  # OpenVINO's errors share no base class
            raise BackendError(
                f"{self.description} cannot load {graph}: {_last_line(error)}"
            ) from error

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, device_outputs: bool = False
    ) -> dict[str, NDArray[Any]]:
        """Run the graph; see `Backend.infer`."""
        if device_outputs:
            raise InputError("openvino returns numpy arrays; device outputs need a plan")
        feed = self._feed(inputs)
        with self._lock:
            if self._request is None:
                raise BackendError("the model is closed; load it again")
            try:
                return self._run(feed, outputs)
            except Exception as error:  # OpenVINO's errors share no base class
                shapes = ", ".join(f"{name} {list(np.shape(inputs[name]))}" for name in inputs)
                raise BackendError(
                    f"{self.description} failed on {shapes}: {_last_line(error)}"
                ) from error

    def batch_limit(self, size: ImageSize) -> int | None:  # noqa: ARG002
        """None: every batch that fits into memory is allowed."""
        return None

    def close(self) -> None:
        """Free the compiled model when no call is running."""
        with self._lock:
            self._request = self._positions = None

    def _feed(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        feed = dict(inputs)
        if self._takes_padding:
            pads = feed.pop("padding", _NO_PADS)
            feed |= zip(_PADS, np.split(pads, 2), strict=True)
        return feed

    def _run(
        self, feed: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        if missing := self._inputs - feed.keys():  # OpenVINO would use the last call's values
            raise ValueError(f"inputs {sorted(missing)} are missing")
        tables = {} if self._positions is None else self._positions.of(feed)
        # A tensor shares the memory of its array without keeping it alive: the arrays, some of them
        # copies made here, have to outlive `infer`. It takes no read-only one.
        arrays = {
            name: np.require(value, requirements=("C", "W"))
            for name, value in {**feed, **tables}.items()
        }
        for name, array in arrays.items():
            self._request.set_tensor(name, self._tensor(array, shared_memory=True))
        self._request.infer()
        return {name: self._request.get_tensor(name).data.copy() for name in outputs}


def _release(openvino: ModuleType) -> str:
    """OpenVINO's version without build number and commit, such as "2026.4.1"."""
    return str(openvino.__version__).partition("-")[0]


def _options(threads: int | None, precision: Precision) -> dict[str, str]:
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        # Otherwise a CPU that has bfloat16 computes in it, which is no float32.
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # For weights that are int8; no other product is touched.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(INT8_GROUP),
        # Otherwise every process pins its threads to the same first cores.
        "ENABLE_CPU_PINNING": "NO",
    }
    return options if threads is None else options | {"INFERENCE_NUM_THREADS": str(threads)}


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


def _steer_products(model: Any) -> None:
    """Make OpenVINO compute float32 products with oneDNN, which is faster than MLAS: docs/adr/0008.

    OpenVINO uses MLAS unless an element-wise operator follows that it can fuse. Therefore a PRelu
    of slope 1, which returns every value unchanged, is added after products that lack one.
    """
    from openvino import opset1  # imported before, by import_openvino

    for node in model.get_ordered_ops():
        if not _is_product_with_bias(node):
            continue
        result = node.output(0)
        users = list(result.get_target_inputs())
        if any(user.get_node().get_type_name() == "Gelu" for user in users):
            continue
        same = opset1.prelu(result, np.ones(1, np.float32))
        for user in users:
            user.replace_source_output(same.output(0))


def _is_product_with_bias(node: Any) -> bool:
    """Whether `node` adds a bias to the product of tokens and a float32 matrix."""
    if node.get_type_name() != "Add":
        return False
    summands = [node.input_value(index).get_node() for index in range(2)]
    return any(
        summand.get_type_name() == "MatMul"
        and summand.input_value(1).get_node().get_type_name() == "Constant"
        for summand in summands
    )


def _last_line(error: Exception) -> str:
    """The last line of OpenVINO's message; the lines before are places in its sources."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
