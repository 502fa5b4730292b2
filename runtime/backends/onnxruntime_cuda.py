"""ONNX Runtime on an NVIDIA GPU: the fused graph, with its own buffers and captured CUDA graphs."""

import shlex
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.errors import BackendError, first_line
from dinov2rt.optional import require
from dinov2rt.runtime.backends.grid_inputs import GridInputs
from dinov2rt.runtime.backends.onnxruntime import load_cuda_libraries, new_session
from dinov2rt.runtime.gpu.cuda import (
    CapturedGraph,
    DeviceMemory,
    Gpu,
    PinnedMemory,
    Stream,
    find_gpu,
    on_gpu,
)
from dinov2rt.runtime.gpu.execution import ExecutionContext, capture_or_warn
from dinov2rt.runtime.gpu.memory_layout import TensorSpec
from dinov2rt.runtime.gpu.phases import Phases

_GRIDS_KEPT = 64

_RUNS_BEFORE_CAPTURE = 2
"""ONNX Runtime plans the memory of a shape in its first run, and allocates it in the second."""

_OLDER_FORM = b"embedding/prefix_shape"
"""A name in fused graphs whose captured CUDA graphs read memory that later calls overwrite."""
_DTYPES: dict[InputFormat, np.dtype[Any]] = {
    InputFormat.PIXELS: np.dtype(np.uint8),
    InputFormat.IMAGES: np.dtype(np.float32),
}
_FLOAT32: np.dtype[Any] = np.dtype(np.float32)


Capture = Callable[[Stream, Callable[[], None], tuple[int, ...]], CapturedGraph | None]


class Memory(Protocol):
    """Memory that a session can read."""

    @property
    def address(self) -> int:
        """Address of its first byte."""
        ...


@dataclass(slots=True)
class _Bound:
    """A session with inputs and outputs bound to addresses, and its CUDA graph once captured.

    `kept` keeps the memory alive that the binding refers to: the matrices on the GPU and the
    padding on the host.
    """

    session: Any
    binding: Any
    run_options: Any
    addresses: Mapping[str, int]
    outputs: Mapping[str, TensorSpec]
    kept: tuple[Any, ...]
    stream: Stream
    graph: CapturedGraph | None = None

    def launch(self) -> None:
        if self.graph is not None:
            self.graph.launch(self.stream)
            return
        try:
            self.session.run_with_iobinding(self.binding, self.run_options)
        except Exception as error:  # ONNX Runtime's errors share no base class
            shapes = ", ".join(f"{name} {list(spec.shape)}" for name, spec in self.outputs.items())
            raise BackendError(f"onnxruntime failed at {shapes}: {first_line(error)}") from error


class SessionProgram:
    """A session as the `Program` of an execution context. The key of a shape is its `GridInputs`.

    `upload` copies a small array to the session's device; `device` is ONNX Runtime's name for that
    device. `capture` records what a launch enqueues, see `capture_or_warn`.
    """

    def __init__(
        self,
        session: Any,
        graph: GraphEntry,
        architecture: Architecture,
        ordinal: int,
        upload: Callable[[NDArray[np.float32]], Memory],
        device: str = "cuda",
        capture: Capture = capture_or_warn,
    ) -> None:
        self._session, self._graph, self._architecture = session, graph, architecture
        self._upload, self._device, self._capture = upload, device, capture
        self._run_options = _run_options()
        self._matrices: OrderedDict[GridInputs, dict[str, tuple[TensorSpec, Memory]]] = (
            OrderedDict()
        )
        self.input_name: str = graph.input_name
        self.input_dtype: np.dtype[Any] = _DTYPES[InputFormat(graph.input_name)]
        self.ordinal = ordinal

    def bind(self, key: Hashable, shape: tuple[int, ...], execution: ExecutionContext) -> _Bound:
        """Bind buffers for a shape that is new; it runs without a CUDA graph."""
        return self._bind(cast(GridInputs, key), shape, execution)

    def prepare(self, key: Hashable, shape: tuple[int, ...], execution: ExecutionContext) -> _Bound:
        """Bind buffers for a shape that comes again, and capture its CUDA graph.

        ONNX Runtime can capture by itself, but keeps each CUDA graph as long as the session, and
        for each thread that calls.
        """
        bound = self._bind(cast(GridInputs, key), shape, execution)
        for _ in range(_RUNS_BEFORE_CAPTURE):
            bound.launch()
        bound.graph = self._capture(execution.stream, bound.launch, shape)
        return bound

    def _bind(
        self, grid: GridInputs, shape: tuple[int, ...], execution: ExecutionContext
    ) -> _Bound:
        outputs = output_specs(self._graph, self._architecture, shape[0], grid)
        images = TensorSpec(shape, self.input_dtype)
        specs = {self.input_name: images, **outputs}
        addresses = execution.reserve({name: spec.num_bytes for name, spec in specs.items()})
        binding = self._session.io_binding()
        padding = grid.arrays()["padding"]
        binding.bind_cpu_input("padding", padding)
        matrices = self._matrices_of(grid)
        for name, (spec, memory) in matrices.items():
            self._bind_input(binding, name, spec, memory.address)
        self._bind_input(binding, self.input_name, images, addresses[self.input_name])
        for name, spec in outputs.items():
            binding.bind_output(
                name, self._device, self.ordinal, spec.dtype, list(spec.shape), addresses[name]
            )
        return _Bound(
            session=self._session,
            binding=binding,
            run_options=self._run_options,
            addresses=addresses,
            outputs=outputs,
            kept=(padding, matrices),
            stream=execution.stream,
        )

    def _bind_input(self, binding: Any, name: str, spec: TensorSpec, address: int) -> None:
        binding.bind_input(name, self._device, self.ordinal, spec.dtype, list(spec.shape), address)

    def _matrices_of(self, grid: GridInputs) -> dict[str, tuple[TensorSpec, Memory]]:
        """The position matrices on the GPU; the least recently used grids are evicted."""
        if grid not in self._matrices:
            arrays = {name: each for name, each in grid.arrays().items() if name != "padding"}
            self._matrices[grid] = {
                name: (TensorSpec(each.shape, each.dtype), self._upload(each))
                for name, each in arrays.items()
            }
            if len(self._matrices) > _GRIDS_KEPT:
                self._matrices.popitem(last=False)
        self._matrices.move_to_end(grid)
        return self._matrices[grid]


class OnnxRuntimeCudaBackend:
    """One session over the fused graph; the weights are in GPU memory once.

    Concurrent calls are serialized in one stream. A CUDA graph is captured when a shape comes for
    the second time. Eight CUDA graphs are kept; the least recently used is freed.
    """

    concurrent_calls = 1
    reads_gpu_arrays = True

    def __init__(self, graph_file: Path, graph: GraphEntry, architecture: Architecture) -> None:
        ort = require("onnxruntime", extra="cuda", purpose="the ONNX Runtime backend")
        _check_form(graph_file)
        self.gpu: Gpu = find_gpu()
        gpu = f"{self.gpu.name} ({self.gpu.target})"
        self.description: str = f"onnxruntime {ort.__version__}, {gpu}"
        load_cuda_libraries(ort)
        self._stream = Stream()
        options = {
            "device_id": str(self.gpu.ordinal),
            "use_tf32": "0",
            "user_compute_stream": str(self._stream.handle),
        }
        session = new_session(
            graph_file,
            "CUDAExecutionProvider",
            options,
            description=self.description,
            # The graph is fused already. ONNX Runtime's remaining optimizations are no gain: one of
            # them replaces MatMul and Add by a slower Gemm.
            optimize=False,
        )
        program = SessionProgram(session, graph, architecture, self.gpu.ordinal, self._upload)
        self._execution: ExecutionContext | None = ExecutionContext(program, self._stream)
        self._graph, self._architecture = graph, architecture
        self._lock = threading.Lock()

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, device_outputs: bool = False
    ) -> dict[str, Any]:
        """Run the graph; see `Backend.infer`."""
        with self._prepared(inputs) as (execution, images, grid):
            run = execution.run_on_device if device_outputs else execution.run
            return dict(run(images, grid, outputs))

    def phases(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Phases:
        """GPU time of one call; see `PhaseTimer`."""
        with self._prepared(inputs) as (execution, images, grid):
            return execution.phases(images, grid, outputs)

    def batch_limit(self, size: ImageSize) -> int | None:  # noqa: ARG002
        """None: every batch that fits into memory is allowed."""
        return None

    def close(self) -> None:
        """Free the session when no call is running."""
        with self._lock:
            if self._execution is not None:
                self._stream.synchronize()
                self._execution = None

    def _upload(self, array: NDArray[np.float32]) -> DeviceMemory:
        """Copy a small array to the GPU; the copy is complete when this returns."""
        spec = TensorSpec(array.shape, array.dtype)
        memory, staging = DeviceMemory(spec.num_bytes), PinnedMemory(spec.num_bytes)
        staging.array(0, spec)[...] = array
        self._stream.copy(memory.address, staging.address, spec.num_bytes)
        self._stream.synchronize()
        return memory

    @contextmanager
    def _prepared(
        self, inputs: Mapping[str, Any]
    ) -> Iterator[tuple[ExecutionContext, Any, GridInputs]]:
        """The execution context, for one call alone, with the call's images and `GridInputs`."""
        with self._lock:
            if self._execution is None:
                raise BackendError("the model is closed; load it again")
            grid = GridInputs.of(self._architecture, self._graph.input_name, inputs)
            with on_gpu(self.gpu.ordinal):
                yield self._execution, inputs[self._graph.input_name], grid


def output_specs(
    graph: GraphEntry, architecture: Architecture, batch: int, grid: GridInputs
) -> dict[str, TensorSpec]:
    """Shape and dtype of each output of `graph` for a batch of images of one grid."""
    dim = architecture.embed_dim
    shapes = {
        "register_tokens": (batch, architecture.num_registers, dim),
        "patch_tokens": (batch, grid.grid.num_patches, dim),
        "cls_token": (batch, dim),
    }
    return {
        name: TensorSpec(
            next(shape for kind, shape in shapes.items() if name.endswith(kind)), _FLOAT32
        )
        for name in graph.outputs
    }


def _run_options() -> Any:
    ort = require("onnxruntime", extra="cuda", purpose="the ONNX Runtime backend")
    options = ort.RunOptions()
    # Readers of the outputs are enqueued in the same stream, and a capture must not synchronize it.
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def _check_form(graph_file: Path) -> None:
    if _OLDER_FORM in graph_file.read_bytes():
        raise BackendError(
            f"{graph_file.name} is of an older version, which could read memory of other calls; "
            f"dinov2rt build {shlex.quote(str(graph_file.parent))} --target onnxruntime-cuda "
            "makes it anew"
        )
