import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dinov2rt.runtime.cpu import Cpu, parse_cpuinfo
from dinov2rt.runtime.doctor import Gpu, examine

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
    assert found.gpus == (Gpu("NVIDIA A100-SXM4-40GB", "550.54.15", "40960", "8.0"),) * 2
    assert found.nvidia_driver == "550.54.15"


@pytest.mark.parametrize("script", ["echo no devices were found; exit 9", "echo gibberish"])
def test_an_nvidia_smi_without_a_gpu_is_no_gpu(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, script, monkeypatch)
    assert examine().gpus == ()


def test_packages_are_looked_up_and_not_imported() -> None:
    script = (
        "import sys; from dinov2rt.runtime.doctor import examine; examine(); "
        "print({'torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
