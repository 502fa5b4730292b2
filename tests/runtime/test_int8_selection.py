"""Int8 runs in OpenVINO on the CPU, and nowhere else."""

from pathlib import Path

import pytest

import dinov2rt
from dinov2rt.bundle.precision import Precision
from dinov2rt.engines.options import BuildOptions
from dinov2rt.errors import BackendError, InputError
from dinov2rt.runtime.backends import openvino
from dinov2rt.runtime.backends.openvino import cannot_run_int8


@pytest.mark.parametrize(
    ("device", "backend", "message"),
    [
        ("cuda", None, "cuda int8: graphs run as"),
        ("auto", "onnxruntime", "onnxruntime auto int8: graphs run as"),
        ("auto", "tensorrt", "plans are in fp16, bf16, fp32; int8 runs as openvino cpu int8"),
        ("cpu", None, "the bundle holds no int8 graph"),
    ],
)
def test_elsewhere_it_is_refused(
    bundle_s_reg: Path, device: str, backend: str | None, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        dinov2rt.load(bundle_s_reg, device=device, backend=backend, precision="int8")


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an x86 says what it can do; there is no such file yet."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr("dinov2rt.runtime.cpu._CPUINFO", file)
    monkeypatch.setattr(openvino, "is_x86", lambda: True)
    return file


@pytest.mark.parametrize("flags", ["fpu sse2", "avx2 avx512f"])
def test_an_x86_that_is_known_to_lack_vnni_is_refused(flags: str, cpuinfo: Path) -> None:
    cpuinfo.write_text(f"model name : Old Xeon\nflags : {flags}\n")
    assert str(cannot_run_int8()).startswith("Old Xeon has no VNNI, without which ")


def test_an_x86_with_vnni_or_one_that_is_not_known_may_run_it(cpuinfo: Path) -> None:
    assert cannot_run_int8() is None
    cpuinfo.write_text("model name : Any\nflags : avx2 avx_vnni\n")
    assert cannot_run_int8() is None


def test_an_openvino_that_cannot_run_runs_no_int8_either(
    cpuinfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo.write_text("model name : Any\nflags : avx512_vnni\n")
    monkeypatch.setattr(openvino, "cannot_run", lambda: "it is too old")
    assert cannot_run_int8() == "it is too old"


def test_no_plan_is_made_of_it() -> None:
    with pytest.raises(InputError, match="int8 graphs are for OpenVINO on the CPU"):
        BuildOptions(precision=Precision.INT8)
