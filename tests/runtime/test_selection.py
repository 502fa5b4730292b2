import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dinov2rt.bundle.entries import FileEntry, GraphEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError, BundleError, InputError
from dinov2rt.runtime import selection
from dinov2rt.runtime.backends import onnxruntime as ort
from dinov2rt.runtime.backends.modes import GraphMode, GraphRequest
from dinov2rt.runtime.backends.protocol import Backend
from dinov2rt.runtime.selection import Choice, select

NAME = f"onnxruntime {onnxruntime.__version__}"
OPENVINO = f"openvino {metadata.version('openvino')}, cpu"
NO_FP16 = "the bundle holds no fp16 graph; export it with --precision fp32,fp16"
NO_CUDA = (
    f"{NAME} here has no CUDAExecutionProvider; "
    "pip install 'dinov2rt[cuda]' on a machine with an NVIDIA GPU"
)

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this onnxruntime has a CUDA provider, and these tests are about its absence",
)


def chosen(
    bundle: Path,
    *,
    device: str = "auto",
    backend: str | None = None,
    precision: str | None = None,
) -> Choice:
    return select(
        bundle,
        Manifest.read(bundle),
        device=device,
        backend=backend,
        precision=precision,
        threads=1,
    )


def give_graphs(bundle: Path, *graphs: GraphEntry) -> None:
    replace(Manifest.read(bundle), graphs=graphs).write(bundle)


def watch_opened(monkeypatch: pytest.MonkeyPatch) -> list[Backend]:
    """The backends of graphs that are opened from now on."""
    opened: list[Backend] = []

    def watched(mode: GraphMode) -> GraphMode:
        def open_it(request: GraphRequest) -> Backend:
            opened.append(mode.open(request))
            return opened[-1]

        return replace(mode, open=open_it)

    modes = tuple(map(watched, selection.GRAPH_MODES))
    monkeypatch.setattr(selection, "GRAPH_MODES", modes)
    return opened


@pytest.fixture
def both(pooling_bundle: Path) -> Path:
    """A bundle with a graph of either precision."""
    (fp32,) = Manifest.read(pooling_bundle).graphs
    give_graphs(pooling_bundle, fp32, replace(fp32, precision=Precision.FP16))
    return pooling_bundle


def no_graph(bundle: Path) -> FileEntry:
    """A protocol buffer with a version and nothing else."""
    (bundle / "none.onnx").write_bytes(b"\x08\x0a")
    return FileEntry.of(bundle, "none.onnx")


def no_fused_graph(bundle: Path) -> str:
    return (
        "the bundle holds no fused graph; add it with: "
        f"dinov2rt build {bundle} --target onnxruntime-cuda"
    )


def test_auto_takes_what_runs_and_says_why_nothing_better(pooling_bundle: Path) -> None:
    choice = chosen(pooling_bundle)
    assert choice.graph.precision is Precision.FP32
    assert choice.backend.description == OPENVINO
    assert choice.passed_over == (
        ("onnxruntime cuda fp16, fused", no_fused_graph(pooling_bundle)),
        (
            "onnxruntime cuda fp16",
            "the bundle holds no fp16 graph; export it with --precision fp32,fp16",
        ),
        ("onnxruntime cuda fp32", NO_CUDA),
    )


def test_without_openvino_onnxruntime_runs(
    pooling_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    choice = chosen(pooling_bundle, device="cpu")
    assert choice.backend.description == f"{NAME}, cpu"
    reason = (
        "the OpenVINO backend needs the package 'openvino', which is not installed; "
        "pip install 'dinov2rt[openvino]'"
    )
    assert choice.passed_over == (("openvino cpu fp32", reason),)
    with pytest.raises(BackendError) as error:
        chosen(pooling_bundle, backend="openvino")
    assert str(error.value) == (
        f"nothing that was asked for runs here (openvino cpu fp32: {reason})"
    )


def test_a_backend_by_name_is_taken(pooling_bundle: Path) -> None:
    assert chosen(pooling_bundle, backend="openvino").backend.description == OPENVINO
    choice = chosen(pooling_bundle, device="cpu", backend="onnxruntime")
    assert (choice.backend.description, choice.passed_over) == (f"{NAME}, cpu", ())


@pytest.mark.parametrize("asked", [{"device": "cuda"}, {"precision": "fp16"}])
def test_a_combination_that_there_is_not_is_told_with_those_that_there_are(
    pooling_bundle: Path, asked: dict[str, str]
) -> None:
    with pytest.raises(BackendError) as error:
        chosen(pooling_bundle, backend="openvino", **asked)
    message = str(error.value)
    assert message.startswith("nothing that was asked for runs here (openvino ")
    assert "openvino cpu fp32, onnxruntime cpu fp32" in message


def test_fp16_is_never_run_on_a_cpu_unasked(both: Path) -> None:
    assert chosen(both).graph.precision is Precision.FP32
    assert chosen(both, device="cpu").graph.precision is Precision.FP32


def test_fp16_runs_on_a_cpu_by_name(both: Path) -> None:
    choice = chosen(both, precision="fp16")
    assert choice.graph.precision is Precision.FP16
    assert choice.passed_over == (
        ("onnxruntime cuda fp16, fused", no_fused_graph(both)),
        ("onnxruntime cuda fp16", NO_CUDA),
    )
    assert chosen(both, device="cpu", precision="fp16").passed_over == ()


def test_a_device_by_name_is_never_replaced(pooling_bundle: Path) -> None:
    with pytest.raises(BackendError) as error:
        chosen(pooling_bundle, device="cuda")
    assert str(error.value) == (
        "nothing that was asked for runs here "
        f"(onnxruntime cuda fp16, fused: {no_fused_graph(pooling_bundle)}; "
        f"onnxruntime cuda fp16: {NO_FP16}; "
        f"onnxruntime cuda fp32: {NO_CUDA})"
    )


def test_a_precision_by_name_is_never_replaced(pooling_bundle: Path) -> None:
    with pytest.raises(BackendError) as error:
        chosen(pooling_bundle, device="cpu", precision="fp16")
    assert str(error.value) == (
        f"nothing that was asked for runs here (onnxruntime cpu fp16: {NO_FP16})"
    )


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_auto_passes_over_a_provider_that_is_there_but_does_not_start(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What onnxruntime-gpu says where the driver or cuDNN is missing.
    monkeypatch.setattr(ort, "cannot_run", lambda _: None)
    choice = chosen(both)
    assert choice.backend.description == OPENVINO
    reason = (
        f"{NAME}, cuda could not be started on this machine; "
        'see `dinov2rt doctor`, or use device="cpu"'
    )
    assert choice.passed_over == (
        ("onnxruntime cuda fp16, fused", no_fused_graph(both)),
        ("onnxruntime cuda fp16", reason),
        ("onnxruntime cuda fp32", reason),
    )
    with pytest.raises(BackendError, match="nothing that was asked for runs here"):
        chosen(both, device="cuda")


def test_a_graph_that_does_not_load_is_one_line(pooling_bundle: Path) -> None:
    manifest = Manifest.read(pooling_bundle)
    (graph,) = manifest.graphs
    give_graphs(pooling_bundle, replace(graph, files=(no_graph(pooling_bundle),)))
    with pytest.raises(BackendError) as error:
        chosen(pooling_bundle, device="cpu")
    assert f"{OPENVINO} cannot load {pooling_bundle / 'none.onnx'}: " in str(error.value)
    assert f"{NAME}, cpu cannot load {pooling_bundle / 'none.onnx'}: " in str(error.value)
    assert "\n" not in str(error.value)


def test_altered_weights_are_an_error_and_not_passed_over(
    pooling_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pooling_bundle / "fp32.onnx.data"
    file.write_bytes(b"x" * file.stat().st_size)
    opened = watch_opened(monkeypatch)
    with pytest.raises(BundleError) as error:
        chosen(pooling_bundle, device="auto")
    (backend,) = opened  # it was loaded while the weights were hashed, and closed for it
    with pytest.raises(BackendError, match="the model is closed"):
        backend.infer({"pixels": np.zeros((1, 14, 14, 3), np.uint8)}, ["cls_token"])
    assert str(error.value).startswith(f"{file} has SHA-256 ")
    assert str(error.value).endswith(
        "; rebuild with: dinov2rt export dinov2_vits14 --weights synthetic:0 --precision fp32 "
        f"--opset 17 --out {pooling_bundle} --force"
    )


def test_an_altered_graph_is_never_parsed(
    pooling_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pooling_bundle / "fp32.onnx"
    file.write_bytes(b"x" * file.stat().st_size)
    opened = watch_opened(monkeypatch)
    with pytest.raises(BundleError, match="has SHA-256"):
        chosen(pooling_bundle)
    assert opened == []


def test_shortened_weights_are_never_loaded(
    pooling_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pooling_bundle / "fp32.onnx.data").write_bytes(b"x")
    opened = watch_opened(monkeypatch)
    with pytest.raises(BundleError, match="has 1 bytes, the manifest says 12"):
        chosen(pooling_bundle)
    assert opened == []


def test_altered_weights_are_the_error_even_where_the_library_fails_as_well(
    pooling_bundle: Path,
) -> None:
    manifest = Manifest.read(pooling_bundle)
    (graph,) = manifest.graphs
    altered = replace(graph.files[1], sha256="0" * 64)
    give_graphs(pooling_bundle, replace(graph, files=(no_graph(pooling_bundle), altered)))
    with pytest.raises(BundleError, match="has SHA-256"):
        chosen(pooling_bundle)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "tpu"}, 'unknown device \'tpu\'; allowed are "auto", "cpu", "cuda"'),
        ({"backend": "x"}, "unknown backend 'x'; allowed are \"openvino\""),
        ({"precision": "int4"}, 'unknown precision \'int4\'; allowed are "fp32", "fp16"'),
    ],
)
def test_a_name_that_does_not_exist(
    pooling_bundle: Path, asked: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError) as error:
        chosen(pooling_bundle, **asked)
    assert str(error.value).startswith(message)
