from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from dinov2rt.runtime import selection
from dinov2rt.runtime.errors import BackendError, BundleError, InputError
from dinov2rt.runtime.manifest import GraphEntry, Manifest
from dinov2rt.runtime.precision import Precision
from dinov2rt.runtime.selection import Choice, select

NAME = f"onnxruntime {onnxruntime.__version__}"
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


@pytest.fixture
def both(pooling_bundle: Path) -> Path:
    """A bundle with a graph of either precision."""
    (fp32,) = Manifest.read(pooling_bundle).graphs
    give_graphs(pooling_bundle, fp32, replace(fp32, precision=Precision.FP16))
    return pooling_bundle


def test_auto_takes_what_runs_and_says_why_nothing_better(pooling_bundle: Path) -> None:
    choice = chosen(pooling_bundle)
    assert choice.graph.precision is Precision.FP32
    assert choice.backend.description == f"{NAME}, cpu"
    assert choice.passed_over == (
        ("onnxruntime cuda fp16", "the bundle holds no fp16 graph"),
        ("onnxruntime cuda fp32", NO_CUDA),
    )


def test_fp16_is_never_run_on_a_cpu_unasked(both: Path) -> None:
    assert chosen(both).graph.precision is Precision.FP32
    assert chosen(both, device="cpu").graph.precision is Precision.FP32


def test_fp16_runs_on_a_cpu_by_name(both: Path) -> None:
    choice = chosen(both, precision="fp16")
    assert choice.graph.precision is Precision.FP16
    assert choice.passed_over == (("onnxruntime cuda fp16", NO_CUDA),)
    assert chosen(both, device="cpu", precision="fp16").passed_over == ()


def test_a_device_by_name_is_never_replaced(pooling_bundle: Path) -> None:
    with pytest.raises(BackendError) as error:
        chosen(pooling_bundle, device="cuda")
    assert str(error.value) == (
        "nothing that was asked for runs here (onnxruntime cuda fp16: the bundle holds no fp16 "
        f"graph; onnxruntime cuda fp32: {NO_CUDA})"
    )


def test_a_precision_by_name_is_never_replaced(pooling_bundle: Path) -> None:
    with pytest.raises(BackendError) as error:
        chosen(pooling_bundle, device="cpu", precision="fp16")
    assert str(error.value) == (
        "nothing that was asked for runs here "
        "(onnxruntime cpu fp16: the bundle holds no fp16 graph)"
    )


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_auto_passes_over_a_provider_that_is_there_but_does_not_start(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What onnxruntime-gpu says where the driver or cuDNN is missing.
    monkeypatch.setattr(selection, "cannot_run", lambda _: None)
    choice = chosen(both)
    assert choice.backend.description == f"{NAME}, cpu"
    reason = (
        f"{NAME}, cuda could not be started on this machine; "
        'see `dinov2rt doctor`, or use device="cpu"'
    )
    assert choice.passed_over == (
        ("onnxruntime cuda fp16", reason),
        ("onnxruntime cuda fp32", reason),
    )
    with pytest.raises(BackendError, match="nothing that was asked for runs here"):
        chosen(both, device="cuda")


def test_a_graph_that_does_not_load_is_one_line(pooling_bundle: Path) -> None:
    manifest = Manifest.read(pooling_bundle)
    (graph,) = manifest.graphs
    give_graphs(pooling_bundle, replace(graph, files=graph.files[1:]))  # the weights alone
    with pytest.raises(BackendError) as error:
        chosen(pooling_bundle, device="cpu")
    assert f"{NAME}, cpu cannot load {pooling_bundle / 'fp32.onnx.data'}: " in str(error.value)
    assert "\n" not in str(error.value)


def test_an_altered_file_is_an_error_and_not_passed_over(pooling_bundle: Path) -> None:
    file = pooling_bundle / "fp32.onnx.data"
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(BundleError) as error:
        chosen(pooling_bundle, device="auto")
    assert str(error.value).startswith(f"{file} has SHA-256 ")
    assert str(error.value).endswith(
        "; rebuild with: dinov2rt export dinov2_vits14 --weights synthetic:0 --precision fp32 "
        f"--out {pooling_bundle} --force"
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "tpu"}, 'unknown device \'tpu\'; allowed are "auto", "cpu", "cuda"'),
        ({"backend": "x"}, "unknown backend 'x'; allowed are \"onnxruntime\""),
        ({"precision": "int4"}, 'unknown precision \'int4\'; allowed are "fp32", "fp16"'),
    ],
)
def test_a_name_that_does_not_exist(
    pooling_bundle: Path, asked: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError) as error:
        chosen(pooling_bundle, **asked)
    assert str(error.value).startswith(message)
