import dataclasses
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from dinov2rt.benchmarks.harness.environment import describe_environment, machine_name
from dinov2rt.benchmarks.harness.gpu_state import GpuState, gpu_state, memory_held_mib, watched
from dinov2rt.runtime.cpu import Cpu
from dinov2rt.runtime.doctor import ListedGpu, examine

GPU_ROW = "580.65.06, 345 MHz, 1980 MHz, 2619 MHz, 700.00 W, 31, Enabled"


def put_nvidia_smi(folder: Path, throttled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows the older name of the throttle reasons alone."""
    program = folder / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "  *clocks_event_reasons*) exit 2 ;;\n"
        f"  *clocks_throttle_reasons*) echo {throttled} ;;\n"
        f"  *) echo '{GPU_ROW}' ;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("model", "sets", "expected"),
    [
        (
            "Intel(R) Xeon(R) Processor @ 2.50GHz",
            ("AVX2", "AVX-512", "AVX-512 VNNI"),
            "xeon-2.5ghz-2c-avx512vnni",
        ),
        ("Intel(R) Xeon(R) Gold 6248R CPU @ 3.00GHz", ("AVX2",), "xeon-gold-6248r-3ghz-2c-avx2"),
        ("AMD EPYC 7B13 64-Core Processor", ("AVX2",), "epyc-7b13-2c-avx2"),
        ("12th Gen Intel(R) Core(TM) i7-1260P", ("AVX-VNNI",), "12th-gen-core-i7-1260p-2c-avxvnni"),
        ("aarch64", (), "aarch64-2c"),
    ],
)
def test_a_cpu_is_named_by_model_cores_and_instructions(
    model: str, sets: tuple[str, ...], expected: str
) -> None:
    found = dataclasses.replace(examine(), cpu=Cpu(model, sets, cores=2))
    assert machine_name(found, "cpu") == expected


def test_a_gpu_is_named_by_its_model_where_it_is_what_runs() -> None:
    gpu = ListedGpu("NVIDIA A100-SXM4-80GB", "580", "81920", "8.0")
    found = dataclasses.replace(examine(), gpus=(gpu,), cpu=Cpu("Some CPU", (), cores=4))
    assert machine_name(found, "cuda") == "a100-sxm4-80gb"
    assert machine_name(found, "cpu") == "some-4c"


def test_this_machine_is_described() -> None:
    found = describe_environment("cpu")
    assert found.machine == machine_name(examine(), "cpu")
    assert os.uname().nodename not in found.machine
    assert found.cores == os.cpu_count()
    assert found.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert found.memory_gib > 0.5
    assert found.libraries["torch"] == metadata.version("torch")
    assert all(metadata.version(name) for name in found.libraries)
    assert found.load_average >= 0


def test_a_process_held_to_fewer_cores_is_warned_of() -> None:
    cores = os.cpu_count() or 1
    if cores == 1:
        pytest.skip("one core cannot be made fewer")
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from dinov2rt.benchmarks.harness.environment import describe_environment\n"
        "print(*describe_environment('cpu').warnings, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"this process may use 1 of {cores} cores; lift the limit with taskset" in done.stdout


def test_a_busy_machine_is_warned_of() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            warnings = describe_environment("cpu").warnings
        finally:
            other.kill()
    assert any(
        line.startswith("other processes use") and line.endswith("stop them and measure again")
        for line in warnings
    )


def test_settings_of_the_gpu_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, "0x0000000000000001", monkeypatch)  # idle
    state = gpu_state()
    assert state.details["GPU power limit"] == "700.00 W"
    assert state.details["GPU throttled by"] == "nothing"
    assert state.warnings == ()


def test_a_throttled_gpu_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, "0x0000000000000044", monkeypatch)
    state = gpu_state()
    assert state.warnings == ("the GPU is throttled by: power cap, heat, by hardware",)


def test_a_gpu_is_watched_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, "0x1", monkeypatch)
    samples = ("345 MHz, 0 %, 0x1", "1980 MHz, 99 %, 0x0", "1755 MHz, 100 %, 0x4", "[N/A], 99 %, x")
    program = tmp_path / "nvidia-smi"
    lines = program.read_text().splitlines()
    said = " ".join(f"'{sample}'" for sample in samples)
    told = tmp_path / "told"
    loop = f"  *utilization*) printf '%s\\n' {said}; : > {told}; exec sleep 600 ;;"
    program.write_text("\n".join([*lines[:2], loop, *lines[2:], ""]))
    with watched() as gpu:
        while not told.exists():
            time.sleep(0.01)
    assert gpu.details["GPU SM clock under load"] == (
        "1868 MHz in the median, 1755 at least, 2 samples"
    )
    assert gpu.warnings == ("under load the GPU was throttled by: power cap",)


def test_without_a_gpu_nothing_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with watched() as gpu:
        pass
    assert gpu == GpuState()
    assert memory_held_mib(os.getpid()) is None


def test_memory_that_a_process_holds_is_found_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '12, 100 MiB\\n123, 3210 MiB\\n7, [N/A]\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert [memory_held_mib(pid) for pid in (123, 12, 7, 3)] == [3210, 100, None, None]


def test_without_a_gpu_there_is_nothing_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_state().details == {}
    assert gpu_state().warnings == ()
