"""All that differs between TensorRT 10.14 and later, TensorRT 11, and TensorRT for RTX.

The rest of this room is written once, against what the three have in common.
"""

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from dinov2rt.bundle.manifest import Flavour
from dinov2rt.engines.builder_log import parse_layers, parse_scratch_bytes, parse_weight_bytes
from dinov2rt.engines.options import BuildOptions
from dinov2rt.errors import BackendError, BuildError, InputError, MissingDependencyError
from dinov2rt.foreign import quoted
from dinov2rt.runtime.gpu.cuda import Gpu, find_gpu
from dinov2rt.runtime.tensorrt.flavour import cannot_run_on, import_tensorrt

CURRENT = "current"
OPEN = "open"

_NOT_TARGETS = ("NONE", "CURRENT")

_RTX_LACKS = {
    "timing_cache": "its builder times nothing, and timing caches do nothing there",
    "version_compatible": "it ships no lean runtime, which such a plan carries",
    "hardware_compatible": 'its builder ignores that; target "open" leaves the GPU open instead',
}


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """What was read back after a build.

    `layers` lists the kernels, one a line, profile after profile; scratch memory is per profile.
    """

    layers: str
    scratch_bytes: tuple[int, ...]
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Toolkit:
    """An installed TensorRT (`trt` is its module), and the GPU here, if there is one."""

    flavour: Flavour
    trt: Any
    gpu: Gpu | None

    @property
    def version(self) -> str:
        """The version of the package, which a plan is bound to."""
        return str(self.trt.__version__)

    @property
    def name(self) -> str:
        """Flavour and version, for messages."""
        return f"{self.flavour} {self.version}"

    @property
    def has_timing_cache(self) -> bool:
        """Whether the builder times kernels, and so gains by a timing cache."""
        return self.flavour is Flavour.TENSORRT

    def refuse(self, options: BuildOptions) -> None:
        """Raise if `options` asks for what this flavour lacks.

        Raises:
            InputError: with the reason.
        """
        if self.flavour is Flavour.TENSORRT:
            return
        for name, reason in _RTX_LACKS.items():
            if getattr(options, name):
                raise InputError(f"{self.name} has no {_words(name)}: {reason}; leave it out")
        if options.strip_weights and self.gpu is None:
            raise InputError(
                f"{self.name} needs a GPU for strip weights: it compiles graphs whose weights can "
                "be refitted on one, and there is none here; leave it out, or build where one is"
            )

    def resolve_target(self, name: str) -> str:
        """The target that the manifest is to state: "sm80", or "open".

        Raises:
            InputError: no such target, or not one that this flavour can build for here.
            BackendError: "current" for a GPU on which plans of this flavour cannot run.
        """
        if name not in (CURRENT, OPEN) and not re.fullmatch(r"sm\d{2,3}", name):
            raise InputError(
                f'unknown target {quoted(name)}; allowed are compute capabilities ("sm80" for an '
                "A100), "
                f'"{CURRENT}" and "{OPEN}"'
            )
        if self.flavour is Flavour.TENSORRT:
            return self._resolve_here(name)
        if name == CURRENT:
            if self.gpu is None:
                raise InputError(f'target "{CURRENT}" needs a GPU, none is here; name one: "sm80"')
            reason = cannot_run_on(self.flavour, self.gpu.name, self.gpu.target)
            if reason is not None:
                raise BackendError(reason)
            return self.gpu.target
        if name != OPEN and name.upper() not in self._capabilities():
            allowed = ", ".join(f'"{member.lower()}"' for member in self._capabilities())
            raise InputError(
                f"{self.name} cannot build for {quoted(name)}; it knows {allowed}, and leaves the "
                "choice "
                f'to the machine that runs the plan with "{OPEN}"'
            )
        return name

    def set_target(self, config: Any, name: str) -> None:
        """Tell the builder's `config` about the target `name`, as it was asked for."""
        if self.flavour is Flavour.TENSORRT or name == OPEN:
            return  # the one builds for the GPU it runs on, the other for all that it knows
        config.num_compute_capabilities = 1
        member = getattr(self.trt.ComputeCapability, name.upper())
        if not config.set_compute_capability(member, 0):
            raise BuildError(f"{self.name} refuses the target {quoted(name)}; try another version")

    def read_back(self, plan: Any, log: Any, num_profiles: int) -> BuildFacts:
        """What the builder made of the network.

        Where there is a GPU by definition, the plan itself is asked. Without a driver it cannot be
        opened, and what is left is what the builder said.

        Raises:
            BuildError: neither tells.
        """
        if self.flavour is Flavour.TENSORRT:
            return self._ask_plan(plan, log)
        return BuildFacts(
            layers=parse_layers(log.messages),
            scratch_bytes=parse_scratch_bytes(log.messages, num_profiles),
            weight_bytes=parse_weight_bytes(log.messages),
        )

    def _resolve_here(self, name: str) -> str:
        if self.gpu is None:  # find_toolkit never lets it come to that
            raise BackendError(f"{self.name} builds on a GPU only")
        if name in (CURRENT, self.gpu.target):
            return self.gpu.target
        raise InputError(
            f"{self.name} builds for the GPU that it runs on, here {self.gpu.target} "
            f"({self.gpu.name}), not for {quoted(name)}; build there, or use the flavour "
            "tensorrt-rtx"
        )

    def _capabilities(self) -> list[str]:
        return [name for name in self.trt.ComputeCapability.__members__ if name not in _NOT_TARGETS]

    def _ask_plan(self, plan: Any, log: Any) -> BuildFacts:
        runtime = self.trt.Runtime(log)
        runtime.engine_host_code_allowed = True  # a version-compatible plan; it was made just now
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            reasons = "; ".join(log.errors[-2:])
            raise BuildError(f"{self.name} does not load the plan that it just built: {reasons}")
        inspector = engine.create_engine_inspector()
        layer_format = self.trt.LayerInformationFormat.ONELINE
        return BuildFacts(
            layers=inspector.get_engine_information(layer_format),
            scratch_bytes=tuple(
                engine.get_device_memory_size_for_profile_v2(index)
                for index in range(engine.num_optimization_profiles)
            ),
            weight_bytes=engine.get_engine_stat(self.trt.EngineStat.TOTAL_WEIGHTS_SIZE),
        )


def find_toolkit(name: str) -> Toolkit:
    """The flavour called `name`; "auto" is `tensorrt` where it and a GPU are, else `tensorrt-rtx`.

    Raises:
        InputError: no such flavour.
        MissingDependencyError: it is not installed.
        BackendError: it is too old, or cannot build here.
    """
    if name == "auto":
        gpu = _gpu_if_any()
        if gpu is not None:
            with contextlib.suppress(MissingDependencyError):
                return _load(Flavour.TENSORRT, gpu)
        return _load(Flavour.TENSORRT_RTX, gpu)
    flavour = _parse(name)
    if flavour is Flavour.TENSORRT_RTX:
        return _load(flavour, _gpu_if_any())
    try:
        return _load(flavour, find_gpu())
    except BackendError as error:
        raise BackendError(
            f"the flavour tensorrt cannot build here ({error}); "
            "use tensorrt-rtx, which needs no GPU to build"
        ) from error


def _load(flavour: Flavour, gpu: Gpu | None) -> Toolkit:
    trt = import_tensorrt(flavour)
    if not hasattr(trt, "IAttention"):
        raise BackendError(
            f"{flavour} {trt.__version__} has no attention operator; 10.14 is the first tensorrt "
            "that has; pip install --upgrade it"
        )
    return Toolkit(flavour, trt, gpu)


def _parse(name: str) -> Flavour:
    try:
        return Flavour(name.replace("-", "_"))
    except ValueError:
        raise InputError(
            f'unknown flavour {quoted(name)}; allowed are "auto", "tensorrt" and "tensorrt-rtx"'
        ) from None


def _gpu_if_any() -> Gpu | None:
    with contextlib.suppress(BackendError, MissingDependencyError):
        return find_gpu()
    return None


def _words(name: str) -> str:
    return name.replace("_", " ")
