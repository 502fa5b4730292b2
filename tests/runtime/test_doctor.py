import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from dinov2rt.bundle.entries import Flavour
from dinov2rt.errors import BackendError, MissingDependencyError
from dinov2rt.runtime import doctor
from dinov2rt.runtime.cpu import Cpu, parse_cpuinfo
from dinov2rt.runtime.doctor import ListedGpu, examine
from dinov2rt.runtime.gpu import cuda
from dinov2rt.runtime.tensorrt.flavour import cannot_run_on

CPUINFO = """\
processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu avx avx2 avx512f avx512_vnni amx_tile

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


def put_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_cpuinfo_gives_the_model_and_the_instruction_sets_of_the_first_core() -> None:
    model, sets = parse_cpuinfo(CPUINFO)
    assert model == "Some CPU @ 2.00GHz"
    assert sets == ("AVX2", "AVX-512", "AVX-512 VNNI", "AMX")


def test_cpuinfo_of_another_kind_of_machine_names_nothing() -> None:
    assert parse_cpuinfo("processor : 0\nFeatures : fp asimd\n") == (None, None)
    assert parse_cpuinfo("") == (None, None)


def test_a_cpu_without_any_of_the_sets_is_told_from_one_that_is_not_known() -> None:
    assert parse_cpuinfo("model name : Old\nflags : fpu sse2\n") == ("Old", ())


@pytest.mark.parametrize(
    ("instruction_sets", "fast"),
    [(("AVX2", "AVX-512"), False), (("AVX2", "AVX-VNNI"), True), (("AVX-512 VNNI", "AMX"), True)],
)
def test_int8_needs_vnni_to_be_fast(instruction_sets: tuple[str, ...], fast: bool) -> None:
    assert Cpu("any", instruction_sets, 1).multiplies_bytes is fast


def test_the_machine_is_described_as_the_system_describes_it() -> None:
    found = examine()
    assert found
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.numpy == metadata.version("numpy")
    if hasattr(os, "sched_getaffinity"):
        assert found.cpu.cores == len(os.sched_getaffinity(0))
    assert found.memory_mib is not None
    assert 0 < found.memory_mib << 20 <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert "CPUExecutionProvider" in found.onnxruntime_providers


def test_each_package_has_its_version_or_the_command_that_adds_it() -> None:
    packages = {package.name: package for package in examine().packages}
    assert packages["pillow"].version == metadata.version("pillow")
    assert packages["torch"].install == "pip install 'dinov2rt[export]'"
    for package in packages.values():
        if package.version is None:
            with pytest.raises(metadata.PackageNotFoundError):
                metadata.version(package.name)


def test_what_runs_is_told_apart_from_what_does_not() -> None:
    found = examine()
    runners = {runner.name: runner.cannot_run for runner in found.runners}
    assert runners["openvino cpu"] is None
    assert runners["onnxruntime cpu"] is None
    has_cuda = "CUDAExecutionProvider" in found.onnxruntime_providers
    assert has_cuda or "pip install 'dinov2rt[cuda]'" in str(runners["onnxruntime cuda"])


def test_gpus_are_those_that_nvidia_smi_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = 'echo "NVIDIA A100-SXM4-40GB, 550.54.15, 40960, 8.0"'
    put_nvidia_smi(tmp_path, f"{answer}\n{answer}", monkeypatch)
    found = examine()
    assert found.gpus == (ListedGpu("NVIDIA A100-SXM4-40GB", "550.54.15", "40960", "8.0"),) * 2
    assert found.nvidia_driver == "550.54.15"


@pytest.mark.parametrize("script", ["echo no devices were found; exit 9", "echo gibberish"])
def test_an_nvidia_smi_without_a_gpu_is_no_gpu(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, script, monkeypatch)
    assert examine().gpus == ()


H100 = cuda.Gpu(0, "NVIDIA H100 80GB HBM3", "sm90", "580.159.04", (13, 0))
A100 = cuda.Gpu(0, "NVIDIA A100-SXM4-80GB", "sm80", "580.159.04", (13, 0))
H100_OF_NVIDIA_SMI = 'echo "NVIDIA H100 80GB HBM3, 580.159.04, 81559, 9.0"'
NOT_ON_H100 = cannot_run_on(Flavour.TENSORRT_RTX, H100.name, H100.target)


def plan_runners() -> dict[str, str | None]:
    return {
        runner.name: runner.cannot_run
        for runner in examine().runners
        if runner.name.startswith("tensorrt")
    }


def let_cuda_find(found: cuda.Gpu | Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_gpu() -> cuda.Gpu:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(doctor, "find_gpu", find_gpu)


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let doctor believe that the packages `names` are installed, and no others."""

    def version(name: str) -> str:
        if name in names:
            return "1.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", version)


@pytest.mark.parametrize("packages", [("tensorrt-rtx",), ()])
def test_no_plan_of_rtx_runs_on_an_h100_whatever_is_installed(
    packages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_cuda_find(H100, monkeypatch)
    install(monkeypatch, "numpy", "tensorrt-cu13", *packages)
    assert plan_runners() == {"tensorrt-cu13 cuda": None, "tensorrt-rtx cuda": NOT_ON_H100}


def test_plans_run_on_an_a100_where_their_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    let_cuda_find(A100, monkeypatch)
    install(monkeypatch, "numpy", "tensorrt-rtx")
    assert plan_runners() == {
        "tensorrt-cu13 cuda": ("tensorrt-cu13 is not installed; pip install 'dinov2rt[tensorrt]'"),
        "tensorrt-rtx cuda": None,
    }


def test_the_gpu_that_cuda_uses_decides_not_all_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, H100_OF_NVIDIA_SMI, monkeypatch)
    let_cuda_find(A100, monkeypatch)
    install(monkeypatch, "numpy", "tensorrt-rtx")
    assert plan_runners()["tensorrt-rtx cuda"] is None


def test_without_cuda_python_nvidia_smi_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, H100_OF_NVIDIA_SMI, monkeypatch)
    let_cuda_find(MissingDependencyError("cuda-python is missing"), monkeypatch)
    install(monkeypatch, "numpy", "tensorrt-cu13")
    assert plan_runners() == {
        "tensorrt-cu13 cuda": "cuda-python is missing",
        "tensorrt-rtx cuda": NOT_ON_H100,
    }


@pytest.mark.parametrize(
    "script",
    [
        f"{H100_OF_NVIDIA_SMI}; echo 'NVIDIA A100-SXM4-80GB, 580.159.04, 81920, 8.0'",
        "echo 'Old GPU, 580.159.04, 81920, [N/A]'",
    ],
)
def test_a_gpu_that_may_run_plans_leaves_the_reason_of_cuda(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, script, monkeypatch)
    let_cuda_find(BackendError("cudaGetDevice failed"), monkeypatch)
    install(monkeypatch, "numpy", "tensorrt-rtx")
    assert plan_runners()["tensorrt-rtx cuda"] == "cudaGetDevice failed"


def test_packages_are_looked_up_and_not_imported() -> None:
    script = (
        "import sys; from dinov2rt.runtime.doctor import examine; examine(); "
        "print({'torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_every_optional_package_is_listed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    listed = {name for package in doctor._PACKAGES for name in package.names}
    for extra, packages in extras.items():
        for package in packages:
            name = re.split(r"[\[><=;]", package)[0].strip()
            assert name in listed | {"dinov2rt"}, f"{name} of {extra}"
    assert {package.extra for package in doctor._PACKAGES} <= set(extras)
