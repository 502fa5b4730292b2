"""Describes the machine and its software, and warns if other processes would disturb a run."""

import os
import re
from importlib import metadata
from pathlib import Path

import psutil

from dinov2rt.benchmarks.harness.gpu_state import gpu_state
from dinov2rt.benchmarks.results import Environment
from dinov2rt.runtime.doctor import Diagnosis, examine

_LIBRARIES = (
    "numpy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "transformers",
    "tensorrt-cu13",
    "tensorrt_rtx",
    "cuda-python",
    "triton",
)
_CPU_FILES = {
    "governor": Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    "turbo off": Path("/sys/devices/system/cpu/intel_pstate/no_turbo"),
    "boost": Path("/sys/devices/system/cpu/cpufreq/boost"),
    "cgroup cpu.max": Path("/sys/fs/cgroup/cpu.max"),
    "cgroup cpu quota in us": Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
    "cgroup cpu period in us": Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
}
_OBSERVED_S = 0.5
_BUSY_CORES = 0.1
"""Threshold of a warning: cores that other processes use; an idle machine shows a tenth of it."""

_NO_NAMES = r"\((r|tm)\)|\b(intel|amd|nvidia|cpu|processor|\d+-core|with .*)\b|@"


def describe_environment(device: str) -> Environment:
    """Describe this machine, for measurements on `device` ("cpu" or "cuda"). Takes half a second.

    Other processes are observed while this one sleeps, so call it before any measurement.
    """
    found = examine()
    affinity = tuple(sorted(psutil.Process().cpu_affinity() or ()))
    cores = psutil.cpu_count() or 1
    state = gpu_state()
    gpu = found.gpus[0].name if found.gpus else None
    load_average = psutil.getloadavg()[0]
    return Environment(
        machine=machine_name(found, device),
        cpu=found.cpu.model,
        gpu=gpu,
        cores=cores,
        memory_gib=round((found.memory_mib or 0) / 1024, 1),
        affinity=affinity,
        python=found.python,
        system=found.system,
        libraries=_versions(),
        details=_cpu_details(found) | state.details,
        load_average=round(load_average, 2),
        warnings=(
            *_busy(_others_cores(), load_average, cores),
            *_confined(affinity, cores),
            *state.warnings,
        ),
    )


def machine_name(found: Diagnosis, device: str) -> str:
    """A short name of the measured device, fit for a folder, e.g. "xeon-2.5ghz-2c-avx512vnni".

    For a GPU it is the model; for a CPU the model, the cores of this process, and the newest
    instruction set. It never contains the host name.
    """
    if device == "cuda" and found.gpus:
        return _slug(found.gpus[0].name)
    best = [name.replace("-", "").replace(" ", "") for name in found.cpu.instruction_sets[-1:]]
    return _slug(" ".join([found.cpu.model, f"{found.cpu.cores}c", *best]))


def _slug(name: str) -> str:
    plain = re.sub(_NO_NAMES, " ", name.lower())
    clocks = re.sub(r"(\.\d*?)0+(ghz)", r"\1\2", plain).replace(".ghz", "ghz")
    return "-".join(re.findall(r"[a-z0-9.]+", clocks))


def _versions() -> dict[str, str]:
    installed = {}
    for name in _LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _cpu_details(found: Diagnosis) -> dict[str, str]:
    details = {"instruction sets": ", ".join(found.cpu.instruction_sets)}
    for name, file in _CPU_FILES.items():
        try:
            details[name] = file.read_text(encoding="ascii").strip()
        except OSError:  # virtual machines and other systems lack some of them
            continue
    return details


def _others_cores() -> float:
    """Cores that other processes use while this process sleeps."""
    return float(psutil.cpu_percent(interval=_OBSERVED_S)) / 100 * (psutil.cpu_count() or 1)


def _busy(others_cores: float, load_average: float, cores: int) -> list[str]:
    warnings = []
    if others_cores > _BUSY_CORES:
        warnings.append(
            f"other processes use {others_cores:.1f} of {cores} cores; stop them and measure again"
        )
    if load_average > cores / 2:
        warnings.append(
            f"the load average of the last minute is {load_average:.1f} on {cores} cores; "
            f"wait until it is below {cores / 2:g} and measure again"
        )
    return warnings


def _confined(affinity: tuple[int, ...], cores: int) -> list[str]:
    if len(affinity) >= cores or not hasattr(os, "sched_getaffinity"):
        return []
    return [f"this process may use {len(affinity)} of {cores} cores; lift the limit with taskset"]
