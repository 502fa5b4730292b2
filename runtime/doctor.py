"""Examines what this machine can run, and which packages are missing for more."""

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dinov2rt.errors import BackendError, MissingDependencyError
from dinov2rt.optional import require
from dinov2rt.runtime.backends.modes import GraphMode, OptionalPackage, PlanMode, Use
from dinov2rt.runtime.backends.registry import GRAPH_MODES, PACKAGES, PLAN_MODES
from dinov2rt.runtime.cpu import Cpu, this_cpu
from dinov2rt.runtime.gpu.cuda import NO_DRIVER, find_gpu
from dinov2rt.runtime.tensorrt.flavour import cannot_run_on

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
_NVIDIA_SMI_QUERY = "name,driver_version,memory.total,compute_cap"
_NVIDIA_SMI_TIMEOUT_S = 20

_PACKAGES = (
    *PACKAGES,
    OptionalPackage(("cuda-python",), "plans of both kinds", "tensorrt"),
    OptionalPackage(("pillow",), "reading images, drawing pictures", "image"),
    OptionalPackage(("pillow-heif",), "reading HEIC images", "heif"),
    OptionalPackage(("huggingface-hub",), "weights from the Hugging Face hub", "hub"),
    OptionalPackage(("pyarrow",), "reading and writing Parquet", "parquet"),
    OptionalPackage(("fsspec",), "bundles behind a URL", "remote"),
    OptionalPackage(("ray",), "run --executor ray", "ray"),
    OptionalPackage(("faiss-cpu",), "search", "search"),
    OptionalPackage(("scikit-learn",), "knn", "eval"),
    OptionalPackage(("torch",), "exporting, verify --eager", "export"),
    OptionalPackage(("onnx",), "exporting, triton", "export"),
    OptionalPackage(("onnx-ir",), "exporting", "export"),
    OptionalPackage(("onnxscript",), "exporting", "export"),
    OptionalPackage(("ml-dtypes",), "exporting", "export"),
    OptionalPackage(("safetensors",), "exporting", "export"),
    OptionalPackage(("tqdm",), "exporting", "export"),
    OptionalPackage(("jinja2",), "bench, report", "bench"),
    OptionalPackage(("matplotlib",), "bench, report", "bench"),
    OptionalPackage(("msgspec",), "bench, report", "bench"),
    OptionalPackage(("psutil",), "bench", "bench"),
    OptionalPackage(("threadpoolctl",), "bench", "bench"),
    OptionalPackage(("transformers",), "bench: a peer", "peers"),
    OptionalPackage(("shtab",), "shell completion", "completion"),
)
"""Every optional package of pyproject.toml."""


@dataclass(frozen=True, slots=True)
class ListedGpu:
    """An NVIDIA GPU as reported by nvidia-smi; memory in MiB."""

    name: str
    driver: str
    memory_mib: str
    compute_capability: str

    @property
    def target(self) -> str | None:
        """The compute capability, such as "sm80", or None if nvidia-smi does not report it."""
        digits = self.compute_capability.replace(".", "")
        return f"sm{digits}" if digits.isdigit() else None


@dataclass(frozen=True, slots=True)
class Package:
    """An optional package: its version (None if it is missing), and its purpose."""

    name: str
    version: str | None
    purpose: str
    install: str


@dataclass(frozen=True, slots=True)
class ModeStatus:
    """A way to run bundles, and why it cannot run here (None if it can)."""

    name: str
    cannot_run: str | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of `examine`; true if a backend can run on this machine.

    `memory_mib` is the memory that this process may use, or None if it is unknown.
    """

    python: str
    system: str
    numpy: str
    cpu: Cpu
    memory_mib: int | None
    nvidia_driver: str | None
    gpus: tuple[ListedGpu, ...]
    packages: tuple[Package, ...]
    onnxruntime_providers: tuple[str, ...]
    runners: tuple[ModeStatus, ...]

    def __bool__(self) -> bool:
        return any(runner.cannot_run is None for runner in self.runners)


def examine() -> Diagnosis:
    """Examine this machine. Of the optional packages, only those that run graphs are imported."""
    gpus = _gpus()
    driver = gpus[0].driver if gpus else _first_line_of(_NVIDIA_DRIVER)
    return Diagnosis(
        python=platform.python_version(),
        system=platform.platform(),
        numpy=metadata.version("numpy"),
        cpu=this_cpu(),
        memory_mib=_memory_mib(),
        nvidia_driver=driver,
        gpus=gpus,
        packages=tuple(map(_package, _PACKAGES)),
        onnxruntime_providers=_onnxruntime_providers(),
        runners=(*_graph_modes(), *_plan_modes(gpus, driver)),
    )


def _graph_modes() -> Iterator[ModeStatus]:
    """The modes that run graphs; modes on the CPU, which every machine has, come first."""
    modes: dict[str, GraphMode] = {}
    for mode in sorted(GRAPH_MODES, key=lambda mode: mode.device != "cpu"):
        name = f"{mode.backend} {mode.device}"
        if mode.use is Use.LESS_EXACT:
            name += f' with precision="{mode.precision}", faster and less exact'
        modes.setdefault(name, mode)
    for name, mode in modes.items():
        yield ModeStatus(name, mode.cannot_run())


def _plan_modes(gpus: tuple[ListedGpu, ...], driver: str | None) -> Iterator[ModeStatus]:
    for mode in PLAN_MODES:
        package = _package(mode.package)
        reason = _cannot_run_plans(mode, package, gpus, driver)
        yield ModeStatus(f"{package.name} {mode.device}", reason)


def _memory_mib() -> int | None:
    limits = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError):  # a container's limit; "max" means no limit
        limits.append(int(_text_of(_CGROUP_MEMORY)))
    return min(limits) >> 20 if limits else None


def _gpus() -> tuple[ListedGpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={_NVIDIA_SMI_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(  # noqa: S603 (no shell, and nothing in it comes from outside)
            command, capture_output=True, text=True, check=True, timeout=_NVIDIA_SMI_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):  # it fails if no driver is loaded
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
    return tuple(ListedGpu(*row) for row in rows if len(row) == len(_NVIDIA_SMI_QUERY.split(",")))


def _package(optional: OptionalPackage) -> Package:
    install = f"pip install 'dinov2rt[{optional.extra}]'"
    for name in optional.names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return Package(name, metadata.version(name), optional.purpose, install)
    return Package(optional.names[0], None, optional.purpose, install)


def _cannot_run_plans(
    mode: PlanMode, package: Package, gpus: tuple[ListedGpu, ...], driver: str | None
) -> str | None:
    """Why plans cannot run, or None; judged by the GPU and installed packages, without TensorRT.

    The GPU is the one that CUDA uses, as in `load`. If CUDA does not work, `gpus` from nvidia-smi
    are used instead.
    """
    reason = None
    try:
        gpu = find_gpu()
        refusals = [cannot_run_on(mode.flavour, gpu.name, gpu.target)]
    except (BackendError, MissingDependencyError) as error:
        reason = str(error) if driver else NO_DRIVER
        refusals = [
            cannot_run_on(mode.flavour, gpu.name, gpu.target) if gpu.target else None
            for gpu in gpus
        ]
    if refusals and all(refusals):
        return refusals[0]  # first, because installing the package would not help
    if package.version is None:
        return f"{package.name} is not installed; {package.install}"
    return reason


def _onnxruntime_providers() -> tuple[str, ...]:
    try:
        ort = require("onnxruntime", extra="ort", purpose="the ONNX Runtime backend")
    except ImportError:
        return ()
    return tuple(ort.get_available_providers())


def _first_line_of(file: Path) -> str | None:
    lines = _text_of(file).splitlines()
    return lines[0] if lines else None


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
