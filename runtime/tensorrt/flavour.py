"""Where the two TensorRTs differ: the data-centre product, and TensorRT for RTX."""

import importlib.util
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from dinov2rt.bundle.manifest import Flavour
from dinov2rt.optional import require

_EXTRAS = {Flavour.TENSORRT: "tensorrt", Flavour.TENSORRT_RTX: "tensorrt-rtx"}


def import_tensorrt(flavour: Flavour) -> ModuleType:
    """The package of `flavour`; nothing imports one before it is needed.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return require(flavour.value, extra=_EXTRAS[flavour], purpose=f"a plan of flavour {flavour}")


def installed_flavours() -> tuple[Flavour, ...]:
    """The flavours whose packages are there, without importing them."""
    return tuple(flavour for flavour in Flavour if importlib.util.find_spec(flavour.value))


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


def invalidity(trt: ModuleType, runtime: Any, plan: bytes) -> str | None:
    """Why TensorRT for RTX says that `plan` cannot run here; the other flavour cannot be asked."""
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, bits = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return None
    diagnostics = trt.EngineInvalidityDiagnostics.__members__.items()
    reasons = [name for name, diagnostic in diagnostics if bits & diagnostic.value]
    return ", ".join(reasons) or "no reason given"
