"""The differences between TensorRT 10.14 and later, TensorRT 11, and TensorRT for RTX.

All other modules of this package use only the API that the three share.
"""

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from dinov2rt.bundle.entries import Flavour
from dinov2rt.engines.builder_log import parse_layers, parse_scratch_bytes, parse_weight_bytes
from dinov2rt.engines.options import BuildOptions
from dinov2rt.errors import BackendError, BuildError, InputError, MissingDependencyError
from dinov2rt.foreign import quoted
from dinov2rt.named_enum import unknown_name
from dinov2rt.runtime.gpu.cuda import Gpu, find_gpu
from dinov2rt.runtime.tensorrt.flavour import cannot_run_on, import_tensorrt

CURRENT = "current"
OPEN = "open"

_NOT_TARGETS = ("NONE", "CURRENT")

_RTX_LACKS = {
    "timing_cache": "its builder does not time kernels",
    "version_compatible": "it has no lean runtime, which such a plan contains",
    "hardware_compatible": 'its builder ignores it; use target "open" for several GPUs instead',
}


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """Facts about a plan, read back after the build.

    `layers` lists the kernels, one per line, profile after profile. `scratch_bytes` has one entry
    per profile.
    """

    layers: str
    scratch_bytes: tuple[int, ...]
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Toolkit:
    """An installed TensorRT (`trt` is its module), and this machine's GPU or None."""

    flavour: Flavour
    trt: Any
    gpu: Gpu | None

    @property
    def version(self) -> str:
        """The version of the package; a plan runs only with the version that built it."""
        return str(self.trt.__version__)

    @property
    def name(self) -> str:
        """Flavour and version, for messages."""
        return f"{self.flavour} {self.version}"

    @property
    def has_timing_cache(self) -> bool:
        """Whether the builder times kernels, so that a timing cache saves build time."""
        return self.flavour is Flavour.TENSORRT

    def refuse(self, options: BuildOptions) -> None:
        """Refuse options that this flavour does not support.

        Raises:
            InputError: an option is not supported; the message gives the reason.
        """
        if self.flavour is Flavour.TENSORRT:
            return
        for name, reason in _RTX_LACKS.items():
            if getattr(options, name):
                raise InputError(f"{self.name} has no {_words(name)}: {reason}; leave it out")
        if options.strip_weights and self.gpu is None:
            raise InputError(
                f"{self.name} needs a GPU for strip weights, because it compiles refittable graphs "
                "on one; there is no GPU here; leave the option out, or build on a GPU machine"
            )

    def resolve_target(self, name: str) -> str:
        """The target that the manifest records: a compute capability such as "sm80", or "open".

        Raises:
            InputError: the target is unknown, or this flavour cannot build for it here.
            BackendError: the target is "current", and plans of this flavour cannot run on this GPU.
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
                raise InputError(
                    f'target "{CURRENT}" needs a GPU, and this machine has no GPU; '
                    'give a compute capability such as "sm80"'
                )
            reason = cannot_run_on(self.flavour, self.gpu.name, self.gpu.target)
            if reason is not None:
                raise BackendError(reason)
            return self.gpu.target
        if name != OPEN and name.upper() not in self._capabilities():
            allowed = ", ".join(f'"{member.lower()}"' for member in self._capabilities())
            raise InputError(
                f"{self.name} cannot build for {quoted(name)}; allowed are {allowed}, and "
                f'"{OPEN}" for any GPU that it supports'
            )
        return name

    def set_target(self, config: Any, name: str) -> None:
        """Set the requested target `name` in the builder's `config`."""
        if self.flavour is Flavour.TENSORRT or name == OPEN:
            return  # TensorRT builds for this machine's GPU, "open" for all supported GPUs
        config.num_compute_capabilities = 1
        member = getattr(self.trt.ComputeCapability, name.upper())
        if not config.set_compute_capability(member, 0):
            raise BuildError(f"{self.name} refuses the target {quoted(name)}; try another version")

    def read_back(self, plan: Any, log: Any, num_profiles: int) -> BuildFacts:
        """Facts about the plan that was just built.

        TensorRT: inspect the engine. TensorRT for RTX: parse the build log, because the engine
        cannot be opened without a GPU.

        Raises:
            BuildError: the engine does not load, or the log lacks a figure.
        """
        if self.flavour is Flavour.TENSORRT:
            return self._inspect(plan, log)
        return BuildFacts(
            layers=parse_layers(log.messages),
            scratch_bytes=parse_scratch_bytes(log.messages, num_profiles),
            weight_bytes=parse_weight_bytes(log.messages),
        )

    def _resolve_here(self, name: str) -> str:
        if self.gpu is None:  # unreachable: find_toolkit refuses TensorRT without a GPU
            raise BackendError(f"{self.name} builds only on a machine with a GPU")
        if name in (CURRENT, self.gpu.target):
            return self.gpu.target
        raise InputError(
            f"{self.name} builds only for this machine's GPU, {self.gpu.target} "
            f"({self.gpu.name}), not for {quoted(name)}; build on such a GPU, or use the flavour "
            "tensorrt-rtx"
        )

    def _capabilities(self) -> list[str]:
        return [name for name in self.trt.ComputeCapability.__members__ if name not in _NOT_TARGETS]

    def _inspect(self, plan: Any, log: Any) -> BuildFacts:
        runtime = self.trt.Runtime(log)
        # Version-compatible plans contain host code. It is trusted: we just built it.
        runtime.engine_host_code_allowed = True
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
    """The installed TensorRT of the flavour `name`.

    "auto" is `tensorrt` if that is installed and there is a GPU, otherwise `tensorrt-rtx`.

    Raises:
        InputError: the flavour is unknown.
        MissingDependencyError: its package is not installed.
        BackendError: its package is too old, or it cannot build here.
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
            f"{flavour} {trt.__version__} has no attention operator; the first tensorrt with one "
            f"is 10.14; pip install --upgrade {flavour}"
        )
    return Toolkit(flavour, trt, gpu)


def _parse(name: str) -> Flavour:
    try:
        return Flavour(name.replace("-", "_"))
    except ValueError:
        raise unknown_name("flavour", name, ("auto", "tensorrt", "tensorrt-rtx")) from None


def _gpu_if_any() -> Gpu | None:
    with contextlib.suppress(BackendError, MissingDependencyError):
        return find_gpu()
    return None


def _words(name: str) -> str:
    return name.replace("_", " ")
