import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from openvino import opset1, opset7

from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError, InputError
from dinov2rt.optional import require
from dinov2rt.runtime.backends import openvino_products
from dinov2rt.runtime.backends.openvino import (
    _LEAST_VERSION,
    OpenVinoBackend,
    cannot_run,
    import_openvino,
)
from dinov2rt.runtime.backends.openvino_products import (
    choose_mlas,
    choose_onednn,
    choose_product_library,
)
from dinov2rt.runtime.cpu import this_cpu
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.model import Model, load

NAME = f"openvino {metadata.version('openvino')}, cpu"
PIXELS = np.full((1, 14, 14, 3), 7, np.uint8)
PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
TELEMETRY = "openvino_telemetry"
STUB = "openvino.tools.ovc.telemetry_stub"
needs_avx512 = pytest.mark.skipif(
    "AVX-512" not in this_cpu().instruction_sets, reason="oneDNN is chosen on AVX-512 alone"
)
S_LARGEST = 384 * 4 * 384 * 4
"""Bytes of the largest matrix of ViT-S, in float32."""
SHAPES = [(1, 14, 14), (3, 98, 126), (2, 231, 345), (1, 518, 518)]


@pytest.fixture
def backend(pooling_bundle: Path) -> OpenVinoBackend:
    return OpenVinoBackend(pooling_bundle / "fp32.onnx", threads=1)


@pytest.fixture(scope="module", params=["bundle_s", "bundle_s_reg"])
def pair(request: pytest.FixtureRequest) -> tuple[Model, Model]:
    """The same bundle in OpenVINO and in ONNX Runtime."""
    bundle = request.getfixturevalue(request.param)
    return load(bundle, backend="openvino"), load(bundle, backend="onnxruntime", device="cpu")


def images(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def assert_agree(pair: tuple[Model, Model], pixels: NDArray[np.uint8], snap: str) -> None:
    got, want = (model(pixels, snap=snap).outputs for model in pair)
    assert list(got) == list(want)
    for name in want:
        assert got[name].shape == want[name].shape
        assert np.linalg.norm(got[name] - want[name]) < 1e-5 * np.linalg.norm(want[name]), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_computes_what_onnxruntime_computes(
    pair: tuple[Model, Model], shape: tuple[int, int, int]
) -> None:
    assert_agree(pair, images(shape), "crop")


def test_padding_adds_zeros_after_normalisation(pair: tuple[Model, Model]) -> None:
    for shape in ((2, 90, 115), (1, 20, 14)):
        assert_agree(pair, images(shape), "pad")
    assert_agree(pair, images((1, 28, 28)), "pad")  # nothing of the padding before is left


def test_the_golden_outputs_are_met(pair: tuple[Model, Model]) -> None:
    report = pair[0].verify()
    assert report
    assert all(output.relative_l2 < 1e-5 for output in report.outputs)


def test_a_graph_of_normalised_images_runs(bundle_normalized: Path) -> None:
    assert load(bundle_normalized, backend="openvino").verify()


def test_runs_and_returns_what_is_asked_for_in_that_order(backend: OpenVinoBackend) -> None:
    assert backend.description == NAME
    got = backend.infer({"pixels": PIXELS}, ["patch_tokens", "cls_token"])
    assert list(got) == ["patch_tokens", "cls_token"]
    np.testing.assert_array_equal(got["patch_tokens"], np.full((1, 1, 3), 7))
    assert list(backend.infer({"pixels": PIXELS}, ["cls_token"])) == ["cls_token"]


def test_a_later_call_leaves_the_outputs_of_an_earlier_one_alone(backend: OpenVinoBackend) -> None:
    first = backend.infer({"pixels": PIXELS}, ["cls_token"])["cls_token"]
    backend.infer({"pixels": PIXELS + 1}, ["cls_token"])
    np.testing.assert_array_equal(first, np.full((1, 3), 7))
    assert first.flags.owndata


def test_arrays_in_any_layout_and_read_only_ones_are_taken(backend: OpenVinoBackend) -> None:
    wide = np.arange(2 * 14 * 28 * 3, dtype=np.uint8).reshape(2, 14, 28, 3)
    strided = wide[:, :, ::2]
    read_only = np.ascontiguousarray(strided)
    read_only.flags.writeable = False
    for pixels in (strided, read_only):
        got = backend.infer({"pixels": pixels}, ["cls_token"])["cls_token"]
        np.testing.assert_allclose(got, strided.mean((1, 2)), rtol=1e-5)


def test_calls_from_many_threads_each_get_their_own(backend: OpenVinoBackend) -> None:
    wrong = []

    def call(value: int) -> None:
        pixels = np.full((1 + value % 3, 14 * (1 + value % 2), 14, 3), value, np.uint8)
        for _ in range(50):
            got = backend.infer({"pixels": pixels}, ["cls_token"])["cls_token"]
            if not np.array_equal(got, np.full((len(pixels), 3), value)):
                wrong.append((value, got))

    threads = [threading.Thread(target=call, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_map_keeps_the_order(pooling_bundle: Path) -> None:
    batches = [np.full((1, 14 * (1 + value % 2), 14, 3), value, np.uint8) for value in range(9)]
    with load(pooling_bundle, backend="openvino") as model:
        for value, features in enumerate(model.map(batches)):
            assert isinstance(features, Features)
            np.testing.assert_array_equal(features.cls_token, np.full((1, 3), value))


def test_it_computes_in_float32_on_unpinned_threads(
    pooling_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, str] = {}
    compile_model = openvino.Core.compile_model

    def watched(core: openvino.Core, model: openvino.Model, device: str, given: dict[str, str]):  # type: ignore[no-untyped-def]
        options.update(given)
        return compile_model(core, model, device, given)

    monkeypatch.setattr(openvino.Core, "compile_model", watched)
    OpenVinoBackend(pooling_bundle / "fp32.onnx", threads=1)
    assert options == {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
        "ENABLE_CPU_PINNING": "NO",
        "INFERENCE_NUM_THREADS": "1",
    }


@pytest.mark.parametrize("content", [b"not a graph", b""])
def test_a_file_that_is_no_graph_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "fp32.onnx"
    file.write_bytes(content)
    with pytest.raises(BackendError) as error:
        OpenVinoBackend(file, threads=None)
    assert str(error.value).startswith(f"{NAME} cannot load {file}: Unable to read the model: ")
    assert "\n" not in str(error.value)


def test_a_graph_that_it_would_compute_wrongly_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fp32.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "abs", ends[:1], ends[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file
    )
    with pytest.raises(BackendError) as error:
        OpenVinoBackend(file, threads=None)
    assert str(error.value) == (
        f"{NAME} cannot load {file}: it holds Abs, which OpenVINO computes wrongly; "
        "export the bundle again"
    )


def run_once(
    model: openvino.Model, tokens: NDArray[np.generic]
) -> tuple[NDArray[np.float32], list[str]]:
    """The first output, and by which kernels the products were computed."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": "YES"}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    request.infer([tokens])
    kernels = [
        node.exec_type
        for node in request.get_profiling_info()
        if node.node_type == "FullyConnected"
    ]
    return request.get_output_tensor(0).data.copy(), kernels


def kernels_of(model: openvino.Model) -> list[str]:
    return run_once(model, images((1, 56, 56)))[1]


@needs_avx512
def test_no_product_of_a_block_is_left_to_the_slower_library(bundle_s: Path) -> None:
    model = openvino.Core().read_model(bundle_s / "fp32.onnx")
    before = sum("mlas" in kernel for kernel in kernels_of(model))
    choose_onednn(model)
    after = sum("mlas" in kernel for kernel in kernels_of(model))
    assert (before, after) == (1 + 5 * 12, 1), "the one is the position table's, without a bias"


def test_mlas_computes_every_product_if_chosen(bundle_s: Path) -> None:
    model = openvino.Core().read_model(bundle_s / "fp32.onnx")
    before = sum("mlas" not in kernel for kernel in kernels_of(model))
    choose_mlas(model)
    assert before == 12, "OpenVINO fuses GELU into one product of each block"
    assert all("mlas" in kernel for kernel in kernels_of(model))


def random_floats(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def product_and_gelu(*, is_formula: bool) -> openvino.Model:
    """One product with a bias, then GELU: as an operator, or as graphs of opset 17 hold it."""
    tokens = opset1.parameter([-1, -1, 64], np.float32)
    product = opset1.matmul(tokens, random_floats(64, 256), False, False)
    wide = opset1.add(product, random_floats(256))
    if is_formula:
        erf = opset1.erf(opset1.multiply(wide, np.float32(np.sqrt(0.5))))
        half = opset1.multiply(wide, np.float32(0.5))
        gelu = opset1.multiply(half, opset1.add(erf, np.float32(1)))
    else:
        gelu = opset7.gelu(wide, "erf")
    return openvino.Model([gelu], [tokens], "gelu")


@pytest.mark.parametrize("is_formula", [False, True])
def test_mlas_computes_the_product_before_gelu_in_each_of_its_forms(is_formula: bool) -> None:
    model = product_and_gelu(is_formula=is_formula)
    tokens = random_floats(1, 9, 64)
    want, kernels = run_once(model, tokens)
    assert "mlas" not in kernels[0], "OpenVINO fuses GELU into the product"
    choose_mlas(model)
    got, kernels = run_once(model, tokens)
    assert ["mlas" in kernel for kernel in kernels] == [True]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_formula", [False, True])
def test_a_product_before_gelu_needs_nothing_for_onednn(is_formula: bool) -> None:
    model = product_and_gelu(is_formula=is_formula)
    choose_onednn(model)
    assert not [node for node in model.get_ops() if node.get_type_name() == "PRelu"]


ONEDNN, MLAS = {"PRelu": 5 * 12}, {"Gather": 12, "Result": 12}


@pytest.mark.parametrize(
    ("instruction_sets", "large", "precision", "added"),
    [
        (("AVX2", "AVX-512"), 16 << 20, Precision.FP32, ONEDNN),
        (("AVX2", "AVX-512"), S_LARGEST, Precision.FP32, ONEDNN),
        (("AVX2", "AVX-512", "AMX-BF16"), S_LARGEST, Precision.FP32, MLAS),
        (("AVX2", "AVX-512", "AMX-BF16"), S_LARGEST + 1, Precision.FP32, ONEDNN),
        (("AVX2", "AVX-512", "AMX-BF16"), S_LARGEST, Precision.BF16, ONEDNN),
        (("AVX2",), 16 << 20, Precision.FP32, MLAS),
        ((), 16 << 20, Precision.FP32, {}),
    ],
)
def test_the_library_of_products_follows_the_cpu_and_the_matrices(
    instruction_sets: tuple[str, ...],
    large: int,
    precision: Precision,
    added: dict[str, int],
    bundle_s: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = replace(this_cpu(), instruction_sets=instruction_sets)
    monkeypatch.setattr(openvino_products, "this_cpu", lambda: cpu)
    monkeypatch.setattr(openvino_products, "_LARGE", large)
    model = openvino.Core().read_model(bundle_s / "fp32.onnx")
    before = Counter(node.get_type_name() for node in model.get_ops())
    choose_product_library(model, precision)
    after = Counter(node.get_type_name() for node in model.get_ops())
    changed = after - before
    del changed["Constant"]
    assert changed == added


@needs_avx512
@pytest.mark.parametrize(("width", "is_large"), [(4096, True), (4095, False)])
def test_openvino_has_another_kernel_for_matrices_of_16_mib(
    width: int, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with AMX, MLAS is chosen from there on."""
    with_amx = replace(this_cpu(), instruction_sets=("AVX2", "AVX-512", "AMX-BF16"))
    monkeypatch.setattr(openvino_products, "this_cpu", lambda: with_amx)
    tokens = opset1.parameter([-1, -1, 1024], np.float32)
    product = opset1.matmul(tokens, np.ones((1024, width), np.float32), False, False)
    model = openvino.Model([opset1.add(product, np.ones(width, np.float32))], [tokens], "product")
    chosen = model.clone()
    choose_onednn(model)
    choose_product_library(chosen, Precision.FP32)
    ones = np.ones((1, 257, 1024), np.float32)
    (kernel,), (chosen_kernel,) = run_once(model, ones)[1], run_once(chosen, ones)[1]
    assert ("brgemm" in kernel, "mlas" in chosen_kernel) == (is_large, is_large)


@needs_avx512
def test_steering_changes_no_value() -> None:
    special = [np.inf, -np.inf, np.nan, 2.5, 1e-30, -1e-30, -3.4e38, -1.5]
    bias = np.array(special * 16, np.float32)
    tokens = opset1.parameter([-1, -1, 128], np.float32)
    product = opset1.matmul(tokens, np.ones((128, 128), np.float32), False, False)
    model = openvino.Model([opset1.add(product, bias)], [tokens], "product")
    choose_onednn(model)
    got, kernels = run_once(model, np.zeros((1, 4, 128), np.float32))
    assert kernels == ["brgconv_avx512_1x1_f32"]
    np.testing.assert_array_equal(got, np.broadcast_to(bias, got.shape))


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({"pixels": PIXELS.astype(np.float32)}, "pixels [1, 14, 14, 3]: "),
        ({"pixels": PIXELS[0]}, "pixels [14, 14, 3]: "),
        ({"images": PIXELS}, "images [1, 14, 14, 3]: inputs ['pixels'] are missing"),
        ({}, ": inputs ['pixels'] are missing"),
    ],
)
def test_a_failed_run_is_one_line_with_the_shapes(
    backend: OpenVinoBackend, inputs: dict[str, np.ndarray], what: str
) -> None:
    backend.infer({"pixels": PIXELS}, ["cls_token"])  # whose input must not be taken again
    with pytest.raises(BackendError) as error:
        backend.infer(inputs, ["cls_token"])
    assert str(error.value).startswith(f"{NAME} failed on {what}")
    assert "\n" not in str(error.value)
    backend.infer({"pixels": PIXELS}, ["cls_token"])


def test_device_outputs_are_for_plans(backend: OpenVinoBackend) -> None:
    with pytest.raises(InputError) as error:
        backend.infer({"pixels": PIXELS}, ["cls_token"], device_outputs=True)
    assert str(error.value) == "openvino returns numpy arrays; device outputs need a plan"


def test_closed_is_told(backend: OpenVinoBackend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(BackendError) as error:
        backend.infer({"pixels": PIXELS}, ["cls_token"])
    assert str(error.value) == "the model is closed; load it again"


def test_openvino_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cannot_run() is None
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert cannot_run() == (
        "the OpenVINO backend needs the package 'openvino', which is not installed; "
        "pip install 'dinov2rt[openvino]'"
    )


@pytest.mark.parametrize(
    ("version", "release"),
    [("2026.1.0-20999-abc-releases/2026/1", "2026.1.0"), ("2025.4.1", "2025.4.1")],
)
def test_an_older_openvino_is_passed_over_and_refused_by_name(
    version: str, release: str, pooling_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "__version__", version)
    reason = (
        f"openvino {release} is older than 2026.2, and its results were not tested; "
        "pip install -U 'dinov2rt[openvino]'"
    )
    assert cannot_run() == reason
    with load(pooling_bundle, device="cpu") as model:
        assert "fp32 on onnxruntime" in model.describe()
    with pytest.raises(BackendError) as error:
        load(pooling_bundle, backend="openvino")
    assert str(error.value) == (
        f"nothing that was asked for runs here (openvino cpu fp32: {reason})"
    )


@pytest.mark.parametrize("version", ["2026.2.0-1-abc", "2026.10.0", "2027.0.0.dev1", "custom_abc"])
def test_any_other_openvino_runs(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "__version__", version)
    assert cannot_run() is None


def test_the_least_version_is_that_of_the_extra() -> None:
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert extras["openvino"] == [f"openvino>={'.'.join(map(str, _LEAST_VERSION))}"]


@pytest.mark.parametrize("before", [ModuleType(TELEMETRY), None])
def test_threads_that_import_it_at_the_same_time_leave_that_package_to_others(
    before: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {name: module for name, module in sys.modules.items() if name != TELEMETRY}
    modules |= {TELEMETRY: before} if before else {}
    monkeypatch.setattr(sys, "modules", modules)

    def slowly(*arguments: Any, **options: Any) -> ModuleType:
        time.sleep(0.1)  # the other thread starts meanwhile
        return require(*arguments, **options)

    monkeypatch.setattr("dinov2rt.runtime.backends.openvino.require", slowly)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: import_openvino(), range(2))) == [openvino] * 2
    assert modules.get(TELEMETRY) is before


@pytest.mark.parametrize("before", ["import openvino_telemetry; ", ""])
def test_it_sends_no_telemetry_and_leaves_that_package_to_others(before: str) -> None:
    script = (
        f"{before}import sys; from dinov2rt.runtime.backends.openvino import import_openvino; "
        "print('openvino_telemetry' in sys.modules); "
        "print(import_openvino().tools.ovc.telemetry_utils.tm.__name__); "
        "print('openvino_telemetry' in sys.modules); import openvino_telemetry"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(bool(before)), STUB, str(bool(before))]
