"""The differences between the two flavours of TensorRT: TensorRT, and TensorRT for RTX."""

import importlib.util
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from dinov2rt.bundle.entries import Flavour
from dinov2rt.errors import first_line
from dinov2rt.files import open_regular
from dinov2rt.optional import require

_EXTRAS = {Flavour.TENSORRT: "tensorrt", Flavour.TENSORRT_RTX: "tensorrt-rtx"}

_RTX_TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")
"""TensorRT for RTX supports these compute capabilities and all newer ones; see `cannot_run_on`."""

MALFORMED = "MALFORMED_ENGINE"
UNSUPPORTED_GPU = "UNSUPPORTED_CC"
"""Two of the reasons that `invalidity` may return."""

OTHER_LIBRARIES = (
    "use ONNX Runtime CUDA (backend=\"onnxruntime\"; pip install 'dinov2rt[cuda]'), "
    "or build a plan on this GPU with --flavour tensorrt"
)
"""The alternatives if TensorRT for RTX does not support the GPU."""


def import_tensorrt(flavour: Flavour) -> ModuleType:
    """Import the package of `flavour`.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    return require(flavour.value, extra=_EXTRAS[flavour], purpose=f"a plan of flavour {flavour}")


def installed_flavours() -> tuple[Flavour, ...]:
    """The flavours whose packages are installed; imports none of them."""
    return tuple(flavour for flavour in Flavour if importlib.util.find_spec(flavour.value))


def cannot_run_on(flavour: Flavour, gpu_name: str, target: str) -> str | None:
    """Why no plan of `flavour` can run on a GPU, or None if no reason is known.

    `target` is the compute capability, such as "sm80".

    When TensorRT for RTX 1.7.1 refuses a plan, it lists the supported GPUs; on an H100: "The engine
    cannot run on this GPU, which has compute capability 9.0. Supported compute capabilities: 8.0
    8.6 8.9 12.0 12.1 >12.0". NVIDIA's guide adds 7.5 for plans that are built only for it, but for
    7.5 the builder refuses our graphs: "FP32 GEMM is not supported".
    """
    if flavour is Flavour.TENSORRT or target in _RTX_TARGETS:
        return None
    if _number(target) > max(map(_number, _RTX_TARGETS)):
        return None
    allowed = ", ".join(map(_dotted, _RTX_TARGETS))
    return (
        f"{gpu_name} has compute capability {_dotted(target)}, plans of TensorRT for RTX run "
        f"on {allowed} and newer; {OTHER_LIBRARIES}"
    )


def _number(target: str) -> int:
    return int(target.removeprefix("sm"))


def _dotted(target: str) -> str:
    """The compute capability of a target: "12.0" for "sm120"."""
    return "{}.{}".format(*divmod(_number(target), 10))


def error_log(trt: ModuleType) -> Any:
    """A TensorRT logger whose `last` is the latest error, for the message of an exception."""

    class ErrorLog(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(["no reason was given"], maxlen=1)

        @property
        def last(self) -> str:
            return self._errors[-1]

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self._errors.append(first_line(message))

    return ErrorLog()


@dataclass(frozen=True, slots=True)
class Contexts:
    """Creates execution contexts, whose scratch memory the caller supplies.

    `changing` creates a context for shapes that change between calls, `fixed` a context for one
    shape. If `captures` is set, a fixed context captures its own CUDA graph.
    """

    changing: Callable[[], Any]
    fixed: Callable[[], Any]
    captures: bool


def contexts_of(trt: ModuleType, engine: Any, flavour: Flavour) -> Contexts:
    """Factories for execution contexts of `engine`."""
    create = _one_at_a_time(engine.create_execution_context)
    if flavour is Flavour.TENSORRT_RTX:
        return _contexts_of_rtx(trt, engine, create)
    plain = partial(create, trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    return Contexts(changing=plain, fixed=plain, captures=False)


def _one_at_a_time(create: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Serialize calls of `create`: TensorRT does not document it as safe for concurrent calls."""
    lock = threading.Lock()

    def create_alone(how: Any) -> Any:
        with lock:
            return create(how)

    return create_alone


def _contexts_of_rtx(trt: ModuleType, engine: Any, create: Callable[[Any], Any]) -> Contexts:
    # All contexts share one cache, so that kernels for a shape are compiled only once.
    cache = engine.create_runtime_config().create_runtime_cache()

    def creator(graphs: Any) -> Callable[[], Any]:
        config = engine.create_runtime_config()
        config.set_runtime_cache(cache)
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # Eager, not lazy: `verify` must run the same kernels as later calls.
        kernels = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
        config.cuda_graph_strategy = graphs
        return partial(create, config)

    strategies = trt.CudaGraphStrategy
    # RTX captures the graph itself, because it may allocate and compile during the first launch.
    return Contexts(
        changing=creator(strategies.DISABLED),
        fixed=creator(strategies.WHOLE_GRAPH_CAPTURE),
        captures=True,
    )


def invalidity(trt: ModuleType, runtime: Any, plan: Path, log: Any) -> str | None:
    """Why TensorRT for RTX refuses the file `plan` on this machine, or None if it can run.

    Only the header is read, which is all that the answer depends on. TensorRT has no such query;
    for its plans the answer is always None.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, bits = runtime.get_engine_validity(_start_of(plan, runtime.engine_header_size))
    if validity != trt.EngineValidity.INVALID:
        return None
    diagnostics = trt.EngineInvalidityDiagnostics.__members__.items()
    reasons = [name for name, diagnostic in diagnostics if bits & diagnostic.value]
    return ", ".join(reasons) or str(log.last)


def _start_of(file: Path, num_bytes: int) -> bytes:
    """The first bytes of `file`, or b"" (a malformed plan) if it cannot be read."""
    try:
        with open_regular(file) as stream:
            return stream.read(num_bytes)
    except OSError:
        return b""
