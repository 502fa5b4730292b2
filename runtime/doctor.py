"""Examines what this machine can run, and which packages are missing for more."""

import contextlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dinov2rt.bundle.entries import Flavour
from dinov2rt.errors import BackendError, MissingDependencyError
from dinov2rt.optional import require
from dinov2rt.runtime.backends import onnxruntime as ort
from dinov2rt.runtime.backends import openvino
from dinov2rt.runtime.backends.onnxruntime import Device
from dinov2rt.runtime.cpu import Cpu, this_cpu
from dinov2rt.runtime.gpu.cuda import NO_DRIVER, find_gpu
from dinov2rt.runtime.tensorrt.flavour import cannot_run_on

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
_NVIDIA_SMI_QUERY = "name,driver_version,memory.total,compute_cap"
_NVIDIA_SMI_TIMEOUT_S = 20

# Distribution names by what they are for, and the extra that brings them: all of pyproject.toml.
_PACKAGES = (
    (("openvino",), "running ONNX graphs on a CPU", "openvino"),
    (("onnxruntime", "onnxruntime-gpu"), "running ONNX graphs", "ort"),
    (("onnxruntime-gpu",), "running ONNX graphs on an NVIDIA GPU", "cuda"),
    (("tensorrt-cu13", "tensorrt-cu12", "tensorrt"), "TensorRT plans", "tensorrt"),
    (("tensorrt-rtx",), "TensorRT-RTX plans", "tensorrt-rtx"),
    (("cuda-python",), "plans of both kinds", "tensorrt"),
    (("pillow",), "reading images, drawing pictures", "image"),
    (("pillow-heif",), "reading HEIC images", "heif"),
    (("huggingface-hub",), "weights from the Hugging Face hub", "hub"),
    (("pyarrow",), "reading and writing Parquet", "parquet"),
    (("fsspec",), "bundles behind a URL", "remote"),
    (("ray",), "run --engine ray", "ray"),
    (("faiss-cpu",), "search", "search"),
    (("scikit-learn",), "knn", "eval"),
    (("torch",), "exporting, verify --eager", "export"),
    (("onnx",), "exporting, triton", "export"),
    (("onnx-ir",), "exporting", "export"),
    (("onnxscript",), "exporting", "export"),
    (("ml-dtypes",), "exporting", "export"),
    (("safetensors",), "exporting", "export"),
    (("tqdm",), "exporting", "export"),
    (("jinja2",), "bench, report", "bench"),
    (("matplotlib",), "bench, report", "bench"),
    (("msgspec",), "bench, report", "bench"),
    (("psutil",), "bench", "bench"),
    (("threadpoolctl",), "bench", "bench"),
    (("transformers",), "bench: a peer", "peers"),
    (("shtab",), "shell completion", "completion"),
)


@dataclass(frozen=True, slots=True)
class Gpu:
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
class Runner:
    """A backend on a device, and why it cannot run here (None if it can)."""

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
    gpus: tuple[Gpu, ...]
    packages: tuple[Package, ...]
    onnxruntime_providers: tuple[str, ...]
    runners: tuple[Runner, ...]

    def __bool__(self) -> bool:
        return any(runner.cannot_run is None for runner in self.runners)


def examine() -> Diagnosis:
    """Examine this machine. Of the optional packages, only those that run graphs are imported."""
    gpus = _gpus()
    driver = gpus[0].driver if gpus else _first_line_of(_NVIDIA_DRIVER)
    packages = tuple(_package(*entry) for entry in _PACKAGES)
    devices: tuple[Device, ...] = ("cpu", "cuda")
    return Diagnosis(
        python=platform.python_version(),
        system=platform.platform(),
        numpy=metadata.version("numpy"),
        cpu=this_cpu(),
        memory_mib=_memory_mib(),
        nvidia_driver=driver,
        gpus=gpus,
        packages=packages,
        onnxruntime_providers=_onnxruntime_providers(),
        runners=(
            Runner("openvino cpu", openvino.cannot_run()),
            Runner(
                'openvino cpu with precision="bf16", about twice as fast',
                openvino.cannot_run_bf16(),
            ),
            *(Runner(f"onnxruntime {device}", ort.cannot_run(device)) for device in devices),
            *(
                _plan_runner(package, gpus, driver)
                for package in packages
                if "TensorRT" in package.purpose
            ),
        ),
    )


def _memory_mib() -> int | None:
    limits = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError):  # a container's limit; "max" means no limit
        limits.append(int(_text_of(_CGROUP_MEMORY)))
    return min(limits) >> 20 if limits else None


def _gpus() -> tuple[Gpu, ...]:
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
    return tuple(Gpu(*row) for row in rows if len(row) == len(_NVIDIA_SMI_QUERY.split(",")))


def _package(names: tuple[str, ...], purpose: str, extra: str) -> Package:
    install = f"pip install 'dinov2rt[{extra}]'"
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return Package(name, metadata.version(name), purpose, install)
    return Package(names[0], None, purpose, install)


def _plan_runner(package: Package, gpus: tuple[Gpu, ...], driver: str | None) -> Runner:
    return Runner(f"{package.name} cuda", _cannot_run_plans(package, gpus, driver))


def _cannot_run_plans(package: Package, gpus: tuple[Gpu, ...], driver: str | None) -> str | None:
    """Why plans cannot run, or None; judged by the GPU and installed packages, without TensorRT.

    The GPU is the one that CUDA uses, as in `load`. If CUDA does not work, `gpus` from nvidia-smi
    are used instead.
    """
    flavour = Flavour.TENSORRT_RTX if package.name == "tensorrt-rtx" else Flavour.TENSORRT
    reason = None
    try:
        gpu = find_gpu()
        refusals = [cannot_run_on(flavour, gpu.name, gpu.target)]
    except (BackendError, MissingDependencyError) as error:
        reason = str(error) if driver else NO_DRIVER
        refusals = [
            cannot_run_on(flavour, gpu.name, gpu.target) if gpu.target else None for gpu in gpus
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
