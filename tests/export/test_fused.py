"""The graph for ONNX Runtime CUDA, checked on the CPU provider, which has its operators too."""

import dataclasses
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.placement import (
    copies_between_providers,
    kernels_by_operator,
    reads_of_host_buffers,
)

from dinov2rt.benchmarks.studies.reliability.small_bundle import age_cuda_graph
from dinov2rt.bundle.accuracy import AccuracyReport
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import BundleError
from dinov2rt.export.cuda.bundle_graph import add_cuda_graph
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.runtime.backends.grid_inputs import GridInputs
from dinov2rt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from dinov2rt.runtime.verification import verify_cuda_graph_on_cpu


def cuda_files(bundle: Path) -> list[Path]:
    """The graph, its own tensors, and the weights that it shares."""
    graph = Manifest.read(bundle).cuda_graph
    assert graph is not None
    return [bundle / file.path for file in graph.files]


def on_cpu(bundle: Path) -> OnnxRuntimeBackend:
    manifest = Manifest.read(bundle)
    graph = manifest.cuda_graph
    assert graph is not None

    def complete(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        grid = GridInputs.of(manifest.architecture, graph.input_name, inputs)
        return {**inputs, **grid.arrays()}

    return OnnxRuntimeBackend(
        bundle / graph.files[0].path, device="cpu", threads=None, complete=complete
    )


def verified(bundle: Path) -> AccuracyReport:
    return verify_cuda_graph_on_cpu(bundle, Manifest.read(bundle))


@pytest.mark.parametrize("bundle", ["bundle_s", "bundle_s_reg"])
def test_it_agrees_with_eager_within_the_limits_of_fp16(
    bundle: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(bundle)
    report = verified(folder)
    assert report, report
    half = next(g for g in Manifest.read(folder).graphs if g.precision is Precision.FP16)
    assert report.limits == half.limits


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [f"dinov2_vit{size}14{registers}" for size in "blg" for registers in ("", "_reg")],
)
def test_it_agrees_for_larger_variants(name: str, tmp_path: Path) -> None:
    from dinov2rt.bundle.variants import find_variant

    bundle = tmp_path / name
    options = ExportOptions(precisions=(Precision.FP16,))
    export_bundle(find_variant(name), "synthetic:0", bundle, options)
    report = verified(bundle)
    assert report, report


@pytest.mark.parametrize(("name", "layers"), [("dinov2_vitg14", ()), ("dinov2_vits14_reg", (0, 1))])
def test_normalized_input_gates_and_layers(
    name: str, layers: tuple[int, ...], toy_variant: Callable[[str], Variant], tmp_path: Path
) -> None:
    bundle = tmp_path / "toy"
    options = ExportOptions(InputFormat.IMAGES, layers=layers, precisions=(Precision.FP16,))
    export_bundle(toy_variant(name), "synthetic:0", bundle, options)
    graph = ir.load(cuda_files(bundle)[0])
    assert copies_between_providers(graph) == []
    assert reads_of_host_buffers(graph) == []
    report = verified(bundle)
    assert report, report
    assert len({output.output for output in report.outputs}) == 2 + toy_variant(
        name
    ).num_registers // 4 + 2 * len(layers)


def test_padding_is_zero_after_normalisation(bundle_s_reg: Path, model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 45, 100, 3), dtype=np.uint8)
    padded = model(pixels, snap="pad")
    padding = np.array((0, 0, 5, 6, 0, 0, 6, 6), dtype=np.int64)
    got = on_cpu(bundle_s_reg).infer({"pixels": pixels, "padding": padding}, ["cls_token"])
    error = np.linalg.norm(got["cls_token"] - padded.cls_token) / np.linalg.norm(padded.cls_token)
    assert error < 2e-3


def test_nothing_is_copied_between_providers(bundle_s_reg: Path) -> None:
    assert copies_between_providers(ir.load(cuda_files(bundle_s_reg)[0])) == []


@pytest.mark.parametrize("bundle", ["bundle_s", "bundle_s_reg"])
def test_a_captured_graph_reads_no_host_memory_of_its_call(
    bundle: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(bundle)
    assert reads_of_host_buffers(ir.load(cuda_files(folder)[0])) == []
    portable = reads_of_host_buffers(ir.load(folder / "fp16.onnx"))
    assert "embedding" in portable[0]  # CLS and patch tokens are concatenated


@pytest.mark.parametrize("bundle", ["bundle_s", "bundle_s_reg"])
def test_the_analysis_finds_what_the_portable_graph_copies(
    bundle: str, request: pytest.FixtureRequest
) -> None:
    """Sides of the grid as floats, for which ONNX Runtime was seen to refuse capturing."""
    graph = ir.load(request.getfixturevalue(bundle) / "fp16.onnx")
    copies = copies_between_providers(graph)
    assert copies
    assert all(copy.startswith("position/") for copy in copies)


def test_a_block_takes_13_kernels(bundle_s_reg: Path) -> None:
    """Attention is three of them: the product, the bias and transpose, and the kernel itself."""
    graph = ir.load(cuda_files(bundle_s_reg)[0])
    operators = Counter(kernels_by_operator(graph, "blocks.5"))
    assert operators == {
        "Attention": 1,
        "MatMul": 3,
        "BiasGelu": 1,
        "SkipLayerNormalization": 2,
        "Cast": 4,
    }
    assert operators.total() - 1 + 3 == 13


def test_a_block_with_swiglu_takes_17_kernels(
    toy_variant: Callable[[str], Variant], tmp_path: Path
) -> None:
    bundle = tmp_path / "toy"
    options = ExportOptions(precisions=(Precision.FP16,))
    export_bundle(toy_variant("dinov2_vitg14"), "synthetic:0", bundle, options)
    operators = Counter(kernels_by_operator(ir.load(cuda_files(bundle)[0]), "blocks.1"))
    assert operators == {
        "Attention": 1,
        "MatMul": 4,
        "Add": 2,
        "QuickGelu": 1,
        "Mul": 1,
        "SkipLayerNormalization": 2,
        "Cast": 4,
    }
    assert operators.total() - 1 + 3 == 17


def test_unchanged_weights_are_stored_once(bundle_s_reg: Path) -> None:
    manifest = Manifest.read(bundle_s_reg)
    assert manifest.cuda_graph is not None
    names = [file.path for file in manifest.cuda_graph.files]
    assert [re.sub("-[0-9a-f]{12}", "-HASH", name) for name in names] == [
        "cuda-HASH.onnx",
        "cuda-HASH.onnx.data",
        "fp16.onnx.data",
    ]
    own, shared = manifest.cuda_graph.files[1:]
    assert own.size_bytes < 0.5 * shared.size_bytes
    paths = [file.path for file in manifest.files]
    assert len(paths) == len(set(paths))


def test_weights_that_underflow_half_keep_their_digits(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path]
) -> None:
    """LayerScale of trained models goes down to 1e-5 and below."""
    bundle = copy_of(bundle_s_reg)
    file = bundle / "fp16.onnx"
    model = ir.load(file)
    gamma = model.graph.initializers["blocks.3.ls1.gamma"]
    assert gamma.const_value is not None
    small = (gamma.const_value.numpy() * np.float32(1e-6)).astype(np.float32)
    gamma.const_value = ir.tensor(small, name=gamma.name)
    ir.external_data.load_to_model(model)
    ir.save(model, file, external_data="fp16.onnx.data")
    manifest = Manifest.read(bundle)
    half = next(graph for graph in manifest.graphs if graph.precision is Precision.FP16)
    files = tuple(type(entry).of(bundle, entry.path) for entry in half.files)
    graphs = tuple(
        dataclasses.replace(graph, files=files) if graph is half else graph
        for graph in manifest.graphs
    )
    dataclasses.replace(manifest, graphs=graphs).write(bundle)
    add_cuda_graph(bundle)
    fused = ir.load(cuda_files(bundle)[0])
    product = next(node for node in fused.graph if node.name == "blocks.3.proj/product")
    assert product.op_type == "FusedMatMul"
    weight = product.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    alpha = product.attributes["alpha"].as_float()
    assert np.log2(alpha) == round(np.log2(alpha))
    source = model.graph.initializers["blocks.3.proj.weight"].const_value
    assert source is not None
    exact = source.numpy().astype(np.float32) * small
    kept = weight.const_value.numpy().astype(np.float32) * alpha
    assert np.linalg.norm(kept - exact) < 2**-11 * np.linalg.norm(exact)


def test_a_bundle_without_fp16_is_told_the_way_out(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = copy_of(bundle_s_reg)
    manifest = Manifest.read(bundle)
    graphs = tuple(g for g in manifest.graphs if g.precision is Precision.FP32)
    dataclasses.replace(manifest, graphs=graphs, cuda_graph=None).write(bundle)
    with pytest.raises(BundleError, match="holds no fp16 graph"):
        add_cuda_graph(bundle)


def test_it_is_added_to_an_older_bundle_without_torch(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = copy_of(bundle_s_reg)
    manifest, own = Manifest.read(bundle), cuda_files(bundle)[:2]
    dataclasses.replace(manifest, cuda_graph=None).write(bundle)
    for file in own:
        file.unlink()
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from dinov2rt.cli import main\n"
        f"raise SystemExit(main(['build', {str(bundle)!r}, '--target', 'onnxruntime-cuda']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Manifest.read(bundle).cuda_graph == manifest.cuda_graph
    assert cuda_files(bundle)[:2] == own
    assert all(file.check(bundle, rebuild="") for file in manifest.files)


def test_an_older_cuda_graph_stays_whole_until_the_manifest_names_the_new_one(
    bundle_s_reg: Path, copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copy_of(bundle_s_reg)
    older = age_cuda_graph(bundle)
    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add_cuda_graph(bundle)
    assert Manifest.read(bundle) == older
    assert all(file.check(bundle, rebuild="") for file in older.files)
    (bundle / "cuda-0123456789ab.onnx").touch()  # of a build that was killed at another moment
    add_cuda_graph(bundle)
    assert verified(bundle)
    assert {file.name for file in bundle.glob("cuda*")} == {
        file.name for file in cuda_files(bundle)[:2]
    }


def interrupted(*_: object) -> None:
    """In place of the last step, as if the process had been killed before it."""
    raise KeyboardInterrupt


def test_the_onnx_checker_reads_its_structure(bundle_s_reg: Path) -> None:
    model = onnx.load(cuda_files(bundle_s_reg)[0], load_external_data=False)
    assert [value.name for value in model.graph.input] == [
        "pixels",
        "padding",
        "position_rows",
        "position_columns",
    ]
    assert {opset.domain for opset in model.opset_import} == {"", "com.microsoft"}
