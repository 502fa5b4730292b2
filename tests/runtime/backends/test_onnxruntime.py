import sys
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dinov2rt.errors import BackendError
from dinov2rt.runtime.backends.onnxruntime import _LEAST_ON_CUDA, OnnxRuntimeBackend, cannot_run

NAME = f"onnxruntime {onnxruntime.__version__}"
PIXELS = np.full((1, 14, 14, 3), 7, np.uint8)

without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this onnxruntime has a CUDA provider",
)


@pytest.fixture
def graph(pooling_bundle: Path) -> Path:
    return pooling_bundle / "fp32.onnx"


def test_runs_and_returns_what_is_asked_for_in_that_order(graph: Path) -> None:
    backend = OnnxRuntimeBackend(graph, device="cpu", threads=1)
    assert backend.description == f"{NAME}, cpu"
    got = backend.infer({"pixels": PIXELS}, ["patch_tokens", "cls_token"])
    assert list(got) == ["patch_tokens", "cls_token"]
    np.testing.assert_array_equal(got["patch_tokens"], np.full((1, 1, 3), 7))
    assert list(backend.infer({"pixels": PIXELS}, ["cls_token"])) == ["cls_token"]


@pytest.mark.parametrize("threads", [None, 2])
def test_threads_are_those_asked_for(graph: Path, threads: int | None) -> None:
    backend = OnnxRuntimeBackend(graph, device="cpu", threads=threads)
    options = backend._session.get_session_options()
    assert options.intra_op_num_threads == (threads or 0)


def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "fp32.onnx"
    file.write_bytes(b"not a graph")
    with pytest.raises(BackendError) as error:
        OnnxRuntimeBackend(file, device="cpu", threads=None)
    assert str(error.value).startswith(f"{NAME}, cpu cannot load {file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({"pixels": PIXELS.astype(np.float32)}, "pixels [1, 14, 14, 3]"),
        ({"pixels": PIXELS[0]}, "pixels [14, 14, 3]"),
        ({"images": PIXELS}, "images [1, 14, 14, 3]"),
        ({}, ""),
    ],
)
def test_a_failed_run_is_one_line_with_the_shapes(
    graph: Path, inputs: dict[str, np.ndarray], what: str
) -> None:
    backend = OnnxRuntimeBackend(graph, device="cpu", threads=1)
    with pytest.raises(BackendError) as error:
        backend.infer(inputs, ["cls_token"])
    assert str(error.value).startswith(f"{NAME}, cpu failed on {what}: ")
    assert "\n" not in str(error.value)


def test_closed(graph: Path) -> None:
    backend = OnnxRuntimeBackend(graph, device="cpu", threads=1)
    backend.close()
    backend.close()
    with pytest.raises(BackendError) as error:
        backend.infer({"pixels": PIXELS}, ["cls_token"])
    assert str(error.value) == "the model is closed; load it again"


def test_a_failing_device_is_not_left_for_another_one(graph: Path) -> None:
    backend = OnnxRuntimeBackend(graph, device="cpu", threads=1)
    assert backend._session._enable_fallback is False


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("1.24.4", "onnxruntime 1.24.4 is older than 1.31, the first that was tried"),
        ("1.30.2", "onnxruntime 1.30.2 is older than 1.31, the first that was tried"),
        ("1.31.0", None),
        ("1.32.0", None),
        ("2.0.1", None),
        ("main", None),
    ],
)
def test_a_version_that_was_never_tried_is_refused_on_gpus(
    version: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPU"]
    )
    found = cannot_run("cuda")
    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_the_least_version_on_gpus_is_that_of_the_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    (requirement, *_) = project["project"]["optional-dependencies"]["cuda"]
    assert requirement == f"onnxruntime-gpu>={'.'.join(map(str, _LEAST_ON_CUDA))}"


def test_cuda_libraries_are_loaded_before_a_session_on_a_gpu_and_nothing_is_said_on_stdout(
    graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, *_: object, providers: list[object], **__: object) -> None:
            calls.append(providers)
            raise RuntimeError("no GPU")

    def preload() -> None:
        sys.stdout.write("Failed to load libcudart\n")
        calls.append(["preload"])

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    for device in ("cpu", "cuda"):
        with pytest.raises(BackendError, match="no GPU"):
            OnnxRuntimeBackend(graph, device=device, threads=None)  # type: ignore[arg-type]
    assert calls == [
        [("CPUExecutionProvider", {})],
        ["preload"],
        [("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "0"})],
    ]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "Failed to load libcudart\n")


def test_the_cpu_can_run() -> None:
    assert cannot_run("cpu") is None


@without_cuda
def test_a_missing_provider_is_named_with_what_brings_it() -> None:
    assert cannot_run("cuda") == (
        f"{NAME} here has no CUDAExecutionProvider; "
        "pip install 'dinov2rt[cuda]' on a machine with an NVIDIA GPU"
    )


@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_a_provider_that_does_not_start_is_an_error(graph: Path) -> None:
    with pytest.raises(BackendError) as error:
        OnnxRuntimeBackend(graph, device="cuda", threads=None)
    assert str(error.value) == (
        f"{NAME}, cuda could not be started on this machine; "
        'see `dinov2rt doctor`, or use device="cpu"'
    )


def test_onnxruntime_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    missing = "the ONNX Runtime backend needs the package 'onnxruntime', which is not installed"
    assert cannot_run("cpu") == f"{missing}; pip install 'dinov2rt[ort]'"
    assert cannot_run("cuda") == f"{missing}; pip install 'dinov2rt[cuda]'"
