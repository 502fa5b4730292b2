"""Graphs of older opsets compute the same, here and on the oldest ONNX Runtime that reads them."""

import subprocess
import sys
import venv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from dinov2rt.bundle.normalization import IMAGENET
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import OPSET
from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import InputError
from dinov2rt.export.exporter import ExportOptions
from dinov2rt.export.folding import fold, fold_attention_scale, fold_norms, split_qkv
from dinov2rt.export.frontend import attach_pixel_input
from dinov2rt.export.portable.opset import lower
from dinov2rt.export.portable.static import StaticShape, make_static
from dinov2rt.export.typed import to_half

OLD = (17, 20, 21)
SIZES = ((1, 28, 42), (2, 70, 33), (1, 518, 518))
OLDEST_RUNTIME = {17: "1.15.1", 20: "1.17.3", 21: "1.18.1"}
"""The oldest ONNX Runtime that has wheels for Python 3.11 and reads graphs of an opset."""

COMPUTE = """
import sys, numpy, onnxruntime
graph, inputs, outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
pixels = numpy.load(inputs)
results = {f"{n}.{i}": r for n in pixels.files
           for i, r in enumerate(session.run(None, {"pixels": pixels[n]}))}
numpy.savez(outputs, **results)
print(onnxruntime.__version__)
"""

Trace = Callable[[str], ir.Model]


def finished(traced: ir.Model, variant: Variant, precision: Precision, opset: int) -> ir.Model:
    """What the exporter makes of a trace."""
    model = traced.clone()
    if precision is Precision.FP32:
        fold(model, variant)
        fold_norms(model)
        split_qkv(model)
    else:
        fold_attention_scale(model, variant)
        to_half(model, precision)
    attach_pixel_input(model, IMAGENET)
    lower(model, opset)
    return model


@pytest.fixture(
    scope="module", params=["dinov2_vits14_reg", "dinov2_vitg14"], ids=["mlp", "swiglu"]
)
def written(request, toy_trace: Trace, toy_variant, tmp_path_factory) -> Callable[..., Path]:
    def write(opset: int, precision: Precision = Precision.FP32) -> Path:
        model = finished(toy_trace(request.param), toy_variant(request.param), precision, opset)
        file = tmp_path_factory.mktemp("opset") / f"{precision}.onnx"
        ir.save(model, file)
        return file

    return write


def pixels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x".join(map(str, size)): rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES
    }


def computed(file: Path) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return {
        f"{name}.{index}": output
        for name, images in pixels().items()
        for index, output in enumerate(session.run(None, {"pixels": images}))
    }


def assert_close(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], most: float
) -> None:
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        error = np.linalg.norm(found[name] - want) / np.linalg.norm(want)
        assert error <= most, (name, error)


def test_older_opsets_compute_the_same(written) -> None:
    expected = computed(written(OPSET))
    for opset in OLD:
        file = written(opset)
        model = onnx.load(file)
        onnx.checker.check_model(model, full_check=True)
        assert [each.version for each in model.opset_import] == [opset]
        kinds = {node.op_type for node in model.graph.node}
        assert "Attention" not in kinds
        assert opset >= 20 or "Gelu" not in kinds
        assert_close(computed(file), expected, 2e-6)


def optimized_gelus(file: Path, folder: Path) -> Counter[str]:
    """What ONNX Runtime computes GELU with, after its own optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the file below is for this machine alone
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)
    return Counter({kind: kinds[kind] for kind in ("BiasGelu", "Gelu", "Erf")})


def test_onnxruntime_fuses_gelu_in_older_opsets_too(written, tmp_path) -> None:
    expected = optimized_gelus(written(OPSET), tmp_path)
    assert not expected["Erf"]
    for opset in OLD:
        assert optimized_gelus(written(opset), tmp_path) == expected


def test_half_precision_of_older_opsets_is_valid_and_as_close(written) -> None:
    reference, half = computed(written(OPSET)), computed(written(OPSET, Precision.FP16))
    for opset in (17, 20):
        file = written(opset, Precision.FP16)
        onnx.checker.check_model(onnx.load(file), full_check=True)
        found = computed(file)
        for name, want in reference.items():
            own = np.linalg.norm(half[name] - want)
            assert np.linalg.norm(found[name] - want) <= 1.5 * own, name


@pytest.mark.parametrize("opset", [0, 16, 18, 19, 24, -1])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(
        InputError, match=rf"^opset {opset}; allowed are 17 \(ONNX Runtime from 1\.15 on"
    ):
        ExportOptions(opset=opset)


def test_int8_is_of_the_default_opset() -> None:
    with pytest.raises(InputError, match=r"^int8 graphs are of opset 23; leave out --opset, or"):
        ExportOptions(precisions=(Precision.INT8,), opset=20)


@pytest.fixture(scope="session")
def old_python(tmp_path_factory) -> Callable[[str], Path]:
    """A Python that has an old ONNX Runtime, from the package index."""
    made: dict[str, Path] = {}

    def python(release: str) -> Path:
        if release not in made:
            folder = tmp_path_factory.mktemp("venv") / release
            venv.create(folder, with_pip=True)
            made[release] = folder / "bin" / "python"
            packages = [f"onnxruntime=={release}", "numpy<2"]
            command = [made[release], "-m", "pip", "install", "-q", *packages]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"ONNX Runtime {release} cannot be installed: {done.stderr[-300:]}")
        return made[release]

    return python


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(sys.version_info[:2] > (3, 11), reason="old releases have no wheels for it")
@pytest.mark.parametrize("opset", OLDEST_RUNTIME)
def test_the_oldest_runtime_computes_the_same(written, old_python, tmp_path, opset: int) -> None:
    release = OLDEST_RUNTIME[opset]
    python = old_python(release)
    for precision, most in ((Precision.FP32, 1e-5), (Precision.FP16, 2e-2)):
        file = written(opset, precision)
        assert_close(computed_by(python, release, file, pixels(), tmp_path), computed(file), most)
    model = ir.load(written(opset))
    make_static(model, StaticShape.parse("1x28x42"), 14)
    ir.save(model, tmp_path / "static.onnx")
    one = {"1x28x42": pixels()["1x28x42"]}
    found = computed_by(python, release, tmp_path / "static.onnx", one, tmp_path)
    expected = {key: want for key, want in computed(written(OPSET)).items() if "1x28x42" in key}
    assert_close(found, expected, 1e-5)


def computed_by(
    python: Path, release: str, file: Path, inputs: dict[str, np.ndarray], folder: Path
) -> dict[str, np.ndarray]:
    np.savez(folder / "pixels.npz", **inputs)
    command = [python, "-c", COMPUTE, file, folder / "pixels.npz", folder / "found.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == release, done.stderr[-2000:]
    with np.load(folder / "found.npz") as found:
        return dict(found)
