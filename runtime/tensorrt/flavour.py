"""Where the two TensorRTs differ: the data-centre product, and TensorRT for RTX."""

import importlib.util
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from dinov2rt.bundle.manifest import Flavour
from dinov2rt.files import open_regular
from dinov2rt.optional import require

_EXTRAS = {Flavour.TENSORRT: "tensorrt", Flavour.TENSORRT_RTX: "tensorrt-rtx"}

_RTX_TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")
"""Where plans of TensorRT for RTX run, besides what is newer; see `cannot_run_on`."""

MALFORMED = "MALFORMED_ENGINE"
UNSUPPORTED_GPU = "UNSUPPORTED_CC"
"""Two of the reasons that `invalidity` may give."""

OTHER_LIBRARIES = (
    "use ONNX Runtime CUDA (backend=\"onnxruntime\"; pip install 'dinov2rt[cuda]'), "
    "or build a plan on this GPU with --flavour tensorrt"
)
"""The way out where TensorRT for RTX does not support the GPU."""


def import_tensorrt(flavour: Flavour) -> ModuleType:
    """The package of `flavour`; nothing imports one before it is needed.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return require(flavour.value, extra=_EXTRAS[flavour], purpose=f"a plan of flavour {flavour}")


def installed_flavours() -> tuple[Flavour, ...]:
    """The flavours whose packages are there, without importing them."""
    return tuple(flavour for flavour in Flavour if importlib.util.find_spec(flavour.value))


def cannot_run_on(flavour: Flavour, gpu_name: str, target: str) -> str | None:
    """Why no plan of `flavour` can run on a GPU, or None where no reason is known.

    `target` is the compute capability as in "sm80".

    TensorRT for RTX 1.7.1 lists where its plans run when it refuses one, here on an H100: "The
    engine cannot run on this GPU, which has compute capability 9.0. Supported compute capabilities:
    8.0 8.6 8.9 12.0 12.1 >12.0". NVIDIA's guide adds 7.5 for a plan that was built for it alone,
    but the builder refuses our graphs for it: "FP32 GEMM is not supported".
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
    """A target as a compute capability: 12.0 for "sm120"."""
    return "{}.{}".format(*divmod(_number(target), 10))


def error_log(trt: ModuleType) -> Any:
    """A logger that keeps the latest error in its `last`, for the message of an exception."""

    class ErrorLog(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(["no reason was given"], maxlen=1)

        @property
        def last(self) -> str:
            return self._errors[-1]

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self._errors.append(message.strip().partition("\n")[0])

    return ErrorLog()


@dataclass(frozen=True, slots=True)
class Contexts:
    """Makes execution contexts that bring no scratch memory of their own.

    `changing` makes one whose shapes change from call to call, `fixed` one that keeps its first
    shape. Where `captures`, a fixed one turns its work into a CUDA graph by itself.
    """

    changing: Callable[[], Any]
    fixed: Callable[[], Any]
    captures: bool


def contexts_of(trt: ModuleType, engine: Any, flavour: Flavour) -> Contexts:
    """How contexts of `engine` are made."""
    create = _one_at_a_time(engine.create_execution_context)
    if flavour is Flavour.TENSORRT_RTX:
        return _contexts_of_rtx(trt, engine, create)
    plain = partial(create, trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    return Contexts(changing=plain, fixed=plain, captures=False)


def _one_at_a_time(create: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Threads share the engine, and nothing says that it makes several contexts at once."""
    lock = threading.Lock()

    def create_alone(how: Any) -> Any:
        with lock:
            return create(how)

    return create_alone


def _contexts_of_rtx(trt: ModuleType, engine: Any, create: Callable[[Any], Any]) -> Contexts:
    # One cache for all: what was compiled for a shape is not compiled again in another context.
    cache = engine.create_runtime_config().create_runtime_cache()

    def creator(graphs: Any) -> Callable[[], Any]:
        config = engine.create_runtime_config()
        config.set_runtime_cache(cache)
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # Not lazily: the kernels that `verify` compares must be those that run later.
        kernels = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
        config.cuda_graph_strategy = graphs
        return partial(create, config)

    strategies = trt.CudaGraphStrategy
    # Its own capture knows which allocations and compilations must not fall into it.
    return Contexts(
        changing=creator(strategies.DISABLED),
        fixed=creator(strategies.WHOLE_GRAPH_CAPTURE),
        captures=True,
    )


def invalidity(trt: ModuleType, runtime: Any, plan: Path, log: Any) -> str | None:
    """Why TensorRT for RTX says that the file `plan` cannot run here, or None where it can.

    Only the header is read: the answer depends on nothing else, and a plan may have gigabytes. The
    other flavour cannot be asked; for it the answer is always None.
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
    """The first bytes of `file`; none if it cannot be read, which makes it a malformed plan."""
    try:
        with open_regular(file) as stream:
            return stream.read(num_bytes)
    except OSError:
        return b""
