"""Products as convolutions in OpenVINO, where shapes are known."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset1, opset7, opset13

from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends import openvino as backend_module
from dinov2rt.runtime.backends import openvino_products, openvino_program
from dinov2rt.runtime.backends.openvino import OpenVinoBackend, cannot_run_bf16, cannot_run_int8
from dinov2rt.runtime.backends.openvino_convolutions import (
    INT8_TOKENS,
    are_convolutions_faster,
    write_as_convolutions,
)
from dinov2rt.runtime.backends.openvino_products import choose_onednn
from dinov2rt.runtime.backends.openvino_program import options
from dinov2rt.runtime.cpu import this_cpu

PRODUCTS_OF_S = 6 * 12  # q, k, v, proj, up, down
needs_bf16 = pytest.mark.skipif(
    cannot_run_bf16() is not None, reason="bfloat16 needs AVX512_BF16 or AMX-BF16"
)
needs_avx512 = pytest.mark.skipif(
    "AVX-512" not in this_cpu().instruction_sets, reason="another kernel without AVX-512"
)
needs_int8 = pytest.mark.skipif(
    cannot_run_int8() is not None, reason="without VNNI products stay float32"
)


@pytest.fixture(autouse=True)
def on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with AVX512_BF16 and without AMX."""
    monkeypatch.setattr(backend_module, "are_convolutions_faster", lambda *_: True)


def images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def kinds(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


def executed(compiled_model: Any) -> list[dict[str, str]]:
    """What OpenVINO says about every node that it computes."""
    nodes = compiled_model.get_runtime_model().get_ordered_ops()
    return [{name: str(fact.value) for name, fact in node.get_rt_info().items()} for node in nodes]


@pytest.mark.parametrize("shape", [(1, 14, 28), (2, 56, 84), (1, 98, 126)], ids=str)
def test_float32_tokens_are_the_same(shape: tuple[int, ...], bundle_s_reg: Path) -> None:
    core = openvino.Core()
    results = []
    for rewrites in (False, True):
        model = core.read_model(bundle_s_reg / "fp32.onnx")
        model.reshape({"pixels": [*shape, 3]})
        if rewrites:
            write_as_convolutions(model)
            assert kinds(model)["Convolution"] == PRODUCTS_OF_S + 1
        run = core.compile_model(model, "CPU", options(1, Precision.FP32))
        results.append(list(run({"pixels": images(*shape)}).values()))
    for want, got in zip(*results, strict=True):
        assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)


@needs_bf16
def test_no_transposition_copies_anything(bundle_s: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        openvino_program, "options", lambda *given: options(*given) | {"PERF_COUNT": "YES"}
    )

    def computed() -> Counter[str]:
        """The layers that took a microsecond or more, which all do at this size."""
        backend = OpenVinoBackend(bundle_s / "fp32.onnx", threads=1, precision=Precision.BF16)
        feed = {"pixels": images(1, 224, 224)}
        backend.prepare(feed)
        backend.infer(feed, ["patch_tokens"])
        (program,) = backend._fixed.values()
        facts = program.request.profiling_info
        return Counter(each.node_type for each in facts if each.status == each.Status.EXECUTED)

    got = computed()
    monkeypatch.setattr(backend_module, "are_convolutions_faster", lambda *_: False)
    want = computed()
    assert (want.pop("FullyConnected"), want.pop("Convolution")) == (PRODUCTS_OF_S, 1)
    assert got.pop("Convolution") == PRODUCTS_OF_S + 1
    assert got == want


def test_answers_of_heads_are_the_same(bundle_heads: Path) -> None:
    (graph,) = Manifest.read(bundle_heads).graphs
    feed = {"pixels": images(2, 42, 56)}
    backend = OpenVinoBackend(bundle_heads / "fp32.onnx", threads=None)
    want = backend.infer(feed, graph.outputs)
    backend.prepare(feed)
    assert len(backend._kernels) >= PRODUCTS_OF_S
    for name, got in backend.infer(feed, graph.outputs).items():
        if got.dtype == np.uint8:
            assert (got != want[name]).mean() < 1e-3, name
        else:
            assert np.linalg.norm(got - want[name]) < 1e-4 * np.linalg.norm(want[name]), name


def test_shapes_share_their_kernels_and_closing_frees_them(bundle_s: Path) -> None:
    backend = OpenVinoBackend(bundle_s / "fp32.onnx", threads=1)
    backend.prepare({"pixels": images(1, 28, 42)})
    first = dict(backend._kernels)
    assert len(first) == PRODUCTS_OF_S
    backend.prepare({"pixels": images(2, 28, 42)})
    assert all(backend._kernels[name] is kernel for name, kernel in first.items())
    backend.close()
    assert not backend._kernels


@needs_bf16
def test_what_is_added_to_the_residual_stream_is_float32(bundle_s: Path) -> None:
    backend = OpenVinoBackend(bundle_s / "fp32.onnx", threads=1, precision=Precision.BF16)
    backend.prepare({"pixels": images(1, 56, 84)})
    (program,) = backend._fixed.values()
    found = Counter(
        (node["runtimePrecision"], node["outputPrecisions"])
        for node in executed(program.request.get_compiled_model())
        if node["layerType"] == "Convolution"
    )
    # q, k, v and up; proj, down and the patch embedding.
    assert found == {("bf16", "bf16"): 4 * 12, ("bf16", "f32"): 2 * 12 + 1}


@needs_int8
def test_products_of_bytes_of_many_tokens_stay() -> None:
    def found(tokens: int) -> Counter[str]:
        model = quantized_product(tokens)
        write_as_convolutions(model)
        return kinds(model)

    assert found(INT8_TOKENS)["Convolution"] == 1
    assert found(INT8_TOKENS + 1)["Convolution"] == 0


@needs_int8
def test_products_of_bytes_are_the_same_and_of_bytes() -> None:
    given = np.random.default_rng(0).standard_normal((1, 9, 64), np.float32)
    results = []
    for rewrites, kind in ((False, "FullyConnected"), (True, "Convolution")):
        model = quantized_product(9)
        if rewrites:
            write_as_convolutions(model)
        run = openvino.Core().compile_model(model, "CPU", options(1, Precision.FP32))
        results.append(run(given)[0])
        (layer,) = [each for each in executed(run) if each["layerType"].startswith(kind)]
        assert layer["runtimePrecision"] in ("u8", "i8"), layer
    want, got = results
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def quantized_product(tokens: int) -> openvino.Model:
    """Tokens [1, N, 64], rounded to 256 fixed steps, times an int8 matrix, plus a bias."""
    random = np.random.default_rng(1)
    parameter = opset1.parameter([1, tokens, 64], np.float32)
    low, high = np.float32(-4), np.float32(4 - 8 / 256)  # zero is one of the steps
    rounded = opset1.fake_quantize(parameter, low, high, low, high, 256)
    numbers = opset1.constant(random.integers(-127, 128, (64, 32), dtype=np.int8))
    scales = opset1.constant(random.uniform(0.01, 0.02, 32).astype(np.float32))
    matrix = opset1.multiply(
        opset1.convert(numbers, np.float32), opset1.reshape(scales, np.array([1, 32]), False)
    )
    product = opset1.matmul(rounded, matrix, False, False)
    biased = opset1.add(product, random.standard_normal(32, np.float32))
    return openvino.Model([opset1.result(biased)], [parameter], "product")


def test_other_products_stay() -> None:
    matrix = np.eye(8, dtype=np.float32)
    tokens = opset1.parameter([1, 3, 8], np.float32)
    pooled = opset1.parameter([1, 8], np.float32)
    product = opset1.matmul(tokens, matrix, False, False)
    others = {
        "no bias": product,
        "added to tokens": opset1.add(product, tokens),
        "a bias for each token": opset1.add(product, np.ones((3, 8), np.float32)),
        "one number as bias": opset1.add(product, np.ones(1, np.float32)),
        "a transposed matrix": opset1.add(
            opset1.matmul(tokens, matrix, False, True), np.ones(8, np.float32)
        ),
        "not of tokens": opset1.add(
            opset1.matmul(pooled, matrix, False, False), np.ones(8, np.float32)
        ),
    }
    results = [opset1.result(each) for each in others.values()]
    model = openvino.Model(results, [tokens, pooled], "products")
    write_as_convolutions(model)
    assert kinds(model)["Convolution"] == 0


@pytest.mark.parametrize("approximation", ["erf", "tanh"])
def test_gelu_goes_along(approximation: str) -> None:
    tokens = opset1.parameter([1, 3, 8], np.float32)
    product = opset1.matmul(tokens, np.eye(8, dtype=np.float32), False, False)
    biased = opset1.add(product, np.full(8, 0.5, np.float32))
    model = openvino.Model([opset1.result(opset7.gelu(biased, approximation))], [tokens], "gelu")
    before = openvino.Core().compile_model(model.clone(), "CPU", options(1, Precision.FP32))
    write_as_convolutions(model)
    after = openvino.Core().compile_model(model, "CPU", options(1, Precision.FP32))
    given = np.random.default_rng(0).standard_normal((1, 3, 8), np.float32)
    np.testing.assert_allclose(after(given)[0], before(given)[0], atol=1e-6)
    (gelu,) = [node for node in model.get_ops() if node.get_type_name() == "Gelu"]
    assert gelu.get_output_shape(0) == [1, 8, 3]


def test_a_result_with_two_readers_is_given_to_both() -> None:
    tokens = opset1.parameter([1, 3, 8], np.float32)
    product = opset1.matmul(tokens, np.eye(8, dtype=np.float32), False, False)
    biased = opset1.add(product, np.full(8, 0.5, np.float32))
    both = [opset1.result(each) for each in (opset13.relu(biased), opset13.negative(biased))]
    model = openvino.Model(both, [tokens], "readers")
    write_as_convolutions(model)
    run = openvino.Core().compile_model(model, "CPU", options(1, Precision.FP32))
    given = np.random.default_rng(0).standard_normal((1, 3, 8), np.float32)
    relu, negative = (run(given)[index] for index in range(2))
    np.testing.assert_allclose(relu, np.maximum(given + 0.5, 0), atol=1e-6)
    np.testing.assert_allclose(negative, -(given + 0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "large", "expected"),
    [
        ("avx2 avx512f avx512_bf16 avx512_vnni", 16 << 20, {Precision.BF16}),
        ("avx2 avx512f avx512_bf16", 1 << 20, {Precision.BF16, Precision.FP32}),
        ("avx2 avx512f avx512_bf16 amx_tile amx_bf16", 1 << 20, set()),
        ("avx2 avx512f", 1 << 20, {Precision.BF16, Precision.FP32}),
        ("avx2", 1 << 20, set()),
    ],
)
def test_it_depends_on_the_cpu_and_on_the_size_of_matrices(
    flags: str,
    large: int,
    expected: set[Precision],
    bundle_s: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"model name : Any\nflags : {flags}\n")
    monkeypatch.setattr("dinov2rt.runtime.cpu._CPUINFO", file)
    monkeypatch.setattr(openvino_products, "_LARGE", large)
    model = openvino.Core().read_model(bundle_s / "fp32.onnx")
    precisions = (Precision.FP32, Precision.BF16)
    assert {each for each in precisions if are_convolutions_faster(model, each)} == expected


@needs_avx512
@pytest.mark.parametrize("width", [4095, 4096])
def test_a_large_matrix_gets_the_kernel_of_smaller_ones(width: int) -> None:
    """As a product it gets another one: see `test_openvino_has_another_kernel_...`."""
    tokens = opset1.parameter([1, 257, 1024], np.float32)
    product = opset1.matmul(tokens, np.ones((1024, width), np.float32), False, False)
    biased = opset1.add(product, np.ones(width, np.float32))
    model = openvino.Model([opset1.result(biased)], [tokens], "product")
    choose_onednn(model)
    write_as_convolutions(model)
    run = openvino.Core().compile_model(model, "CPU", options(1, Precision.FP32))
    (layer,) = [each for each in executed(run) if each["layerType"] == "Convolution"]
    assert layer["primitiveType"].startswith("brgconv_avx512_1x1")
