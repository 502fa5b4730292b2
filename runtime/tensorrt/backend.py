"""The TensorRT backend, for both flavours: runs a plan on the GPU that it was built for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from dinov2rt.bundle.entries import GraphEntry, PlanEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.manifest import rebuild_command
from dinov2rt.bundle.profiles import BatchShape
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.errors import BackendError, PlanInputError
from dinov2rt.runtime.gpu.cuda import Gpu, Stream, on_gpu
from dinov2rt.runtime.gpu.device_arrays import is_on_gpu
from dinov2rt.runtime.gpu.execution import ExecutionContext
from dinov2rt.runtime.gpu.phases import Phases
from dinov2rt.runtime.tensorrt.flavour import (
    MALFORMED,
    OTHER_LIBRARIES,
    UNSUPPORTED_GPU,
    contexts_of,
    error_log,
    import_tensorrt,
    invalidity,
)
from dinov2rt.runtime.tensorrt.plan_checks import Machine, check_runs
from dinov2rt.runtime.tensorrt.profile_choice import choose_profile, largest_batch
from dinov2rt.runtime.tensorrt.program import LoadedPlan, PlanProgram


class TensorRTBackend:
    """Runs one plan. Each concurrent call has an execution context of its own.

    Execution contexts are pooled; the pool grows to the peak number of concurrent calls. A thread
    that calls alone always gets the same one.
    """

    concurrent_calls = 2  # the copies of one call overlap with the computation of the other
    reads_gpu_arrays = True

    def __init__(self, plan: LoadedPlan, patch_size: int) -> None:
        entry, gpu = plan.entry, plan.gpu
        self.description: str = (
            f"{entry.flavour} {entry.version}, {gpu.name} ({gpu.target}), {entry.file.path}"
        )
        self.entry: PlanEntry = entry
        self.gpu: Gpu = gpu
        self._plan: LoadedPlan | None = plan
        self._patch_size = patch_size
        self._idle: list[ExecutionContext] = []

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, device_outputs: bool = False
    ) -> dict[str, Any]:
        """Run the plan; see `Backend.infer`.

        Raises:
            PlanInputError: the shape is outside every profile, or the call needs padding, which
                plans cannot do.
        """
        with self._prepared(inputs) as (execution, images, profile):
            run = execution.run_on_device if device_outputs else execution.run
            return dict(run(images, profile, outputs))

    def phases(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Phases:
        """GPU time of one call; see `PhaseTimer`.

        Raises:
            PlanInputError: as `infer` does.
        """
        with self._prepared(inputs) as (execution, images, profile):
            return execution.phases(images, profile, outputs)

    def batch_limit(self, size: ImageSize) -> int | None:
        """The largest batch of `size` that a profile allows; see `Backend.batch_limit`."""
        return largest_batch(self.entry.profiles, size)

    def close(self) -> None:
        """Free the plan when no call is running and no execution context is in use."""
        self._plan = None
        while self._idle:
            self._idle.pop().stream.synchronize()

    @contextmanager
    def _prepared(self, inputs: Mapping[str, Any]) -> Iterator[tuple[ExecutionContext, Any, int]]:
        """An execution context, with the call's images and the index of its profile."""
        plan = self._plan  # another thread may close the backend during this call
        if plan is None:
            raise BackendError("the model is closed; load it again")
        images = plan_input(plan.entry, inputs, self._patch_size)
        profile = choose_profile(plan.entry.profiles, batch_shape(plan.entry, images))
        with on_gpu(plan.gpu.ordinal), self._execution(plan) as execution:
            yield execution, images, profile

    @contextmanager
    def _execution(self, plan: LoadedPlan) -> Iterator[ExecutionContext]:
        try:
            execution = self._idle.pop()
        except IndexError:
            execution = ExecutionContext(PlanProgram(plan), Stream())
        yield execution
        # An execution context whose call failed is dropped: its state is unknown.
        self._idle.append(execution)
        if self._plan is None:
            self.close()


def open_plan(
    bundle: Path, entry: PlanEntry, graph: GraphEntry, patch_size: int
) -> TensorRTBackend:
    """Check the plan against this machine and the manifest, then deserialize it.

    A plan without weights is refitted from `graph`, the graph that it was built from. `patch_size`
    is the side of the model's patches, in pixels.

    Raises:
        BackendError: the plan cannot run here; the message names the difference and the command
            that rebuilds the plan.
        BundleError: the file is missing or altered.
        MissingDependencyError: a package is missing.
    """
    machine = Machine.examine(entry.flavour)
    rebuild = rebuild_command(bundle, entry, machine.gpu.target)
    check_runs(entry, machine, rebuild)
    file = entry.file.locate(bundle, rebuild=rebuild)
    trt = import_tensorrt(entry.flavour)
    log = error_log(trt)
    runtime = trt.Runtime(log)
    # A version-compatible plan contains its own runtime.
    runtime.engine_host_code_allowed = "version_compatible" in entry.options
    # Checked before gigabytes are read. A malformed header is left to the hash check below.
    reason = invalidity(trt, runtime, file, log)
    if reason not in (None, MALFORMED):
        raise _does_not_load(entry, reason, rebuild)
    # A plan contains native code: only a file whose hash is in the manifest is deserialized.
    content = entry.file.read(bundle, rebuild=rebuild)
    engine = runtime.deserialize_cuda_engine(content) if reason is None else None
    if engine is None:
        raise _does_not_load(entry, reason or log.last, rebuild)
    if "strip_weights" in entry.options:
        _refit(trt, engine, graph.check(bundle, rebuild=rebuild), log)
    if "weight_streaming" in entry.options:  # must be set before the first execution context
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    contexts = contexts_of(trt, engine, entry.flavour)
    plan = LoadedPlan(entry, machine.gpu, trt, engine, contexts, log)
    return TensorRTBackend(plan, patch_size)


def _does_not_load(entry: PlanEntry, reason: str, rebuild: str) -> BackendError:
    remedy = OTHER_LIBRARIES if UNSUPPORTED_GPU in reason else rebuild
    return BackendError(
        f"{entry.file.path} does not load with {entry.flavour} {entry.version} ({reason}); {remedy}"
    )


def _refit(trt: ModuleType, engine: Any, graph: Path, log: Any) -> None:
    refitter = trt.Refitter(engine, log)
    from_graph = trt.OnnxParserRefitter(refitter, log)
    if not (from_graph.refit_from_file(str(graph)) and refitter.refit_cuda_engine()):
        raise BackendError(f"the plan does not take the weights of {graph} ({log.last})")


def plan_input(entry: PlanEntry, inputs: Mapping[str, Any], patch_size: int) -> Any:
    """The images of a call, cropped to whole patches.

    The graph drops incomplete patches at the bottom and at the right. Images on the host are
    cropped here, so that a size that is not a multiple of the patch fits the profile of the next
    smaller multiple.

    Raises:
        PlanInputError: the call needs an input that plans do not have.
    """
    if "padding" in inputs:
        # TensorRT folds the graph's padding to its default, which is zero. Padding the pixels
        # instead is not possible: no uint8 value is exactly zero after normalization.
        raise PlanInputError(
            'snap="pad" is not possible in a TensorRT plan of a graph that takes pixels; export '
            'with --input normalized, or load with backend="onnxruntime"'
        )
    images = inputs[entry.input_name]
    if is_on_gpu(images):
        return images
    rows, cols = _axes(entry)
    index = [slice(None)] * 4
    for axis in (rows, cols):
        index[axis] = slice(images.shape[axis] // patch_size * patch_size)
    return images[tuple(index)]


def batch_shape(entry: PlanEntry, images: Any) -> BatchShape:
    """Batch size, height and width of the plan's input."""
    rows, cols = _axes(entry)
    return BatchShape(images.shape[0], images.shape[rows], images.shape[cols])


def _axes(entry: PlanEntry) -> tuple[int, int]:
    return (1, 2) if entry.input_name == InputFormat.PIXELS else (2, 3)
