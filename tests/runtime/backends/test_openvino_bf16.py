from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset1, opset6, opset13

import dinov2rt
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError
from dinov2rt.runtime.backends import openvino as backend_module
from dinov2rt.runtime.backends.openvino import FIXED_SHAPES, OpenVinoBackend, cannot_run_bf16
from dinov2rt.runtime.backends.openvino_bf16 import (
    _SIZES_KEPT,
    PositionTables,
    keep_norms,
    widen_convolutions,
)
from dinov2rt.runtime.backends.openvino_program import options
from dinov2rt.runtime.model import Model, load

FASTER = 'openvino cpu bf16 would run here, faster and less exact: precision="bf16"'
needs_bf16 = pytest.mark.skipif(
    cannot_run_bf16() is not None, reason="bfloat16 needs AVX512_BF16 or AMX-BF16"
)


@pytest.fixture(scope="module")
def bf16(bundle_s_reg: Path) -> Iterator[Model]:
    if reason := cannot_run_bf16():
        pytest.skip(reason)
    with load(bundle_s_reg, precision="bf16") as model:
        yield model


def compiled(model: Model) -> Any:
    backend = model._choice.backend
    assert isinstance(backend, OpenVinoBackend)
    assert backend._any_shape is not None
    return backend._any_shape.request.get_compiled_model()


def executed(compiled_model: Any) -> list[tuple[str, str, str, str]]:
    """Kind, names in the graph, precision of computation and of the result, of every node."""
    nodes = []
    for node in compiled_model.get_runtime_model().get_ordered_ops():
        facts = {name: str(value.value) for name, value in node.get_rt_info().items()}
        keys = ("layerType", "originalLayersNames", "runtimePrecision", "outputPrecisions")
        nodes.append(tuple(facts[key] for key in keys))
    return nodes


def images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_products_and_attention_are_bfloat16(bf16: Model) -> None:
    found = executed(compiled(bf16))
    products = Counter(
        (kind, precision)
        for kind, _, precision, _ in found
        if kind in ("FullyConnected", "MatMul", "Convolution", "Subgraph")
    )
    assert products == {
        ("Convolution", "bf16"): 1,
        ("FullyConnected", "bf16"): 6 * 12,  # q, k, v, proj, up, down
        ("Subgraph", "bf16"): 12,  # attention
    }


def test_the_residual_stream_stays_float32(bf16: Model) -> None:
    found = executed(compiled(bf16))
    sums = [
        node for node in found if node[0] == "Eltwise" and node[1].startswith(("blocks", "embedd"))
    ]
    assert len([node for node in sums if node[1].startswith("blocks")]) == 2 * 12
    assert {node[2:] for node in sums} == {("f32", "f32")}
    # What is added to it comes from the products in float32, with no rounding on the way.
    to_stream = [node for node in found if ".proj/" in node[1] or ".down/" in node[1]]
    assert {node[3] for node in to_stream if node[0] == "FullyConnected"} == {"f32"}
    assert [node[3] for node in found if node[0] == "Convolution"] == ["f32"]


def test_every_norm_computes_in_float32_and_rounds_for_products(bf16: Model) -> None:
    """No pass of its own rounds what a norm returns to the bfloat16 that products read."""
    norms = [node[2:] for node in executed(compiled(bf16)) if node[0] == "MVN"]
    assert norms == 2 * 12 * [("f32", "bf16")] + [("f32", "f32")]


@needs_bf16
def test_a_norm_passes_nan_on_to_its_product() -> None:
    tokens = opset1.parameter([1, -1, 128], np.float32)
    norm = opset6.mvn(tokens, np.array([-1]), True, 1e-6, "INSIDE_SQRT")
    product = opset1.matmul(norm, np.eye(128, dtype=np.float32), False, False)
    model = openvino.Model([product], [tokens], "norm")
    keep_norms(model)
    run = openvino.Core().compile_model(model, "CPU", options(1, Precision.BF16))
    given = np.random.default_rng(0).standard_normal((1, 3, 128), np.float32)
    given[0, 1, 5] = np.nan
    got = run(given)[0]
    assert np.isnan(got[0, 1]).all()
    assert np.isfinite(got[0, [0, 2]]).all()


@pytest.mark.parametrize(("side", "wider"), [(14, 1), (28, 0), (-1, 1)])
def test_convolutions_of_several_known_columns_stay_as_they_are(
    bundle_s_reg: Path, side: int, wider: int
) -> None:
    model = openvino.Core().read_model(bundle_s_reg / "fp32.onnx")
    model.reshape({"pixels": [1, 70, side, 3]})
    before = Counter(node.get_type_name() for node in model.get_ops())
    widen_convolutions(model)
    added = Counter(node.get_type_name() for node in model.get_ops()) - before
    assert (added["Pad"], added["Slice"]) == (wider, wider)


def test_the_position_table_is_computed_apart_in_float32(bf16: Model) -> None:
    found = executed(compiled(bf16))
    assert not [node for node in found if "position" in node[1]]
    backend = bf16._choice.backend
    assert isinstance(backend, OpenVinoBackend)
    assert backend._any_shape is not None and backend._any_shape.positions is not None
    apart = executed(backend._any_shape.positions._request.get_compiled_model())
    table = [node for node in apart if node[0] in ("MatMul", "FullyConnected", "Eltwise")]
    assert len(table) > 10
    assert not [node for node in apart if "bf16" in node[2:]]


@needs_bf16
def test_scores_and_softmax_of_attention_are_float32_inside() -> None:
    """Scores of 100.25 and 100.5, which bfloat16 cannot tell apart by that much."""
    heads, split, join = 2, np.array([0, 0, 2, 64]), np.array([0, 0, 128])
    tokens = [opset1.parameter([-1, -1, 128], np.float32) for _ in range(3)]
    axes = np.array([0, 2, 1, 3])
    parts = [opset1.transpose(opset1.reshape(each, split, True), axes) for each in tokens]
    attended = opset13.scaled_dot_product_attention(
        *parts, attention_mask=opset1.constant(np.float32(0)), scale=opset1.constant(np.float32(1))
    )
    joined = opset1.reshape(opset1.transpose(attended, axes), join, True)
    product = opset1.matmul(joined, np.eye(128, dtype=np.float32), False, False)
    model = openvino.Core().compile_model(
        openvino.Model([product], tokens, "attention"), "CPU", options(1, Precision.BF16)
    )
    assert [node[2] for node in executed(model) if node[0] == "Subgraph"] == ["bf16"]
    query, key, value = (np.zeros((1, 8, heads, 64), np.float32) for _ in range(3))
    query[..., :2] = 1
    key[..., 0] = -100
    key[:, :2, :, 0] = 100
    key[:, 0, :, 1], key[:, 1, :, 1] = 0.25, 0.5
    value[:, 1] = 1
    got = model([part.reshape(1, 8, 128) for part in (query, key, value)])[0]
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-0.25)), rtol=2**-8)


def test_massive_activations_survive(bf16: Model) -> None:
    """The largest |activation| is about 300 in these weights: a stream in bfloat16 would fail."""
    fp16 = next(graph for graph in bf16.manifest.graphs if graph.precision is Precision.FP16)
    assert max(fp16.ranges.values()) > 250
    report = bf16.verify()
    assert report
    assert report.precision is Precision.BF16
    patches = [each for each in report.outputs if each.output == "patch_tokens"]
    assert max(output.relative_l2 for output in patches) < 9e-3  # autocast has 8.5e-3
    cls_tokens = [each for each in report.outputs if each.output == "cls_token"]
    assert min(output.cosine_min for output in cls_tokens) > 0.9999


@pytest.mark.parametrize("snap", ["crop", "pad"])
def test_it_is_near_float32_at_any_size(bf16: Model, model: Model, snap: str) -> None:
    for shape in ((1, 14, 14), (3, 98, 126), (2, 60, 45), (1, 700, 14)):
        got, want = (each(images(*shape), snap=snap) for each in (bf16, model))
        for name in want.outputs:
            difference = np.linalg.norm(got.outputs[name] - want.outputs[name])
            assert difference < 0.02 * np.linalg.norm(want.outputs[name]), (shape, name)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 70, 14),  # one column: see `widen_convolutions`
        (2, 518, 14),
        (1, 14, 518),
        (1, 14, 14),  # six tokens and six heads: see `mixes_up_heads`
        (3, 14, 14),
        (2, 98, 126),
    ],
)
def test_it_is_near_float32_where_the_shape_is_known(
    bf16: Model, model: Model, shape: tuple[int, int, int]
) -> None:
    """OpenVINO's own results are wrong for some of these."""
    bf16.warm_up([shape])
    got, want = (each(images(*shape)).patch_tokens for each in (bf16, model))
    assert np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)


@needs_bf16
def test_a_shape_that_is_not_compiled_alone_evicts_none(bundle_s_reg: Path) -> None:
    backend = OpenVinoBackend(bundle_s_reg / "fp32.onnx", threads=1, precision=Precision.BF16)
    for shape in (*[(1, 28, 14 * count) for count in range(2, 2 + FIXED_SHAPES)], (1, 14, 14)):
        backend.prepare({"pixels": images(*shape)})
    assert len(backend._fixed) == FIXED_SHAPES


def test_tables_of_many_sizes_are_bounded_and_those_of_their_size(bundle_s_reg: Path) -> None:
    core = openvino.Core()
    model = core.read_model(bundle_s_reg / "fp32.onnx")
    tables = PositionTables(core, model, options(1, Precision.FP32))
    sides = [14 * (1 + count) for count in range(_SIZES_KEPT + 3)]
    pads = {"pads_begin": np.zeros(4, np.int64), "pads_end": np.zeros(4, np.int64)}
    for batch in (1, 2):
        for side in (*sides, sides[0]):
            feed = {"pixels": images(batch, side, 28)} | (pads if len(model.inputs) > 2 else {})
            (table,) = tables.of(feed).values()
            assert table.shape == (1, side // 14 * 2, 384)
    assert len(tables._kept) == _SIZES_KEPT


def test_a_graph_without_a_position_table_runs(pooling_bundle: Path) -> None:
    backend = OpenVinoBackend(pooling_bundle / "fp32.onnx", threads=1, precision=Precision.BF16)
    got = backend.infer({"pixels": images(2, 28, 42)}, ["cls_token"])["cls_token"]
    np.testing.assert_allclose(got, images(2, 28, 42).mean((1, 2)), rtol=0.01)


def test_it_is_never_chosen_unasked_but_mentioned(bf16: Model, bundle_s_reg: Path) -> None:
    with load(bundle_s_reg, device="cpu") as model:
        assert model.graph.precision is Precision.FP32
        assert FASTER in model.describe()
    assert FASTER not in bf16.describe()
    assert "bf16 on openvino" in bf16.describe()


def test_a_bundle_from_before_says_what_to_do(pooling_bundle: Path) -> None:
    with pytest.raises(BackendError) as error:
        load(pooling_bundle, precision="bf16")
    before = "the bundle was exported before limits for bf16 on a CPU were measured; rebuild with: "
    reason = cannot_run_bf16() or f"{before}dinov2rt export "
    assert f"(openvino cpu bf16: {reason}" in str(error.value)
    assert FASTER not in load(pooling_bundle, device="cpu").describe()


@needs_bf16
def test_a_bundle_without_the_graph_says_what_to_do(pooling_bundle: Path) -> None:
    manifest = Manifest.read(pooling_bundle)
    (graph,) = manifest.graphs
    replace(manifest, graphs=(replace(graph, precision=Precision.FP16),)).write(pooling_bundle)
    with pytest.raises(BackendError, match="bf16 on a CPU is the fp32 graph, and the bundle holds"):
        load(pooling_bundle, precision="bf16")


@needs_bf16
def test_heads_that_did_not_hold_their_limits_at_the_export_are_refused(
    bundle_heads: Path, copy_of: Callable[[Path], Path]
) -> None:
    """Such an export writes no limits; whether these heads hold them depends on the CPU."""
    other = copy_of(bundle_heads)
    manifest = Manifest.read(other)
    graphs = [replace(graph, bf16_limits=None, bf16_task_limits={}) for graph in manifest.graphs]
    replace(manifest, graphs=tuple(graphs)).write(other)
    with pytest.raises(BackendError, match=r"did not show that .*depth_nyu_linear4.* hold their"):
        load(other, precision="bf16")
    with load(other, device="cpu") as model:
        assert FASTER not in model.describe()


@pytest.fixture(scope="module")
def heads(bundle_heads: Path) -> OpenVinoBackend:
    if reason := cannot_run_bf16():
        pytest.skip(reason)
    return OpenVinoBackend(bundle_heads / "fp32.onnx", threads=None, precision=Precision.BF16)


def test_heads_stay_float32_beside_a_backbone_in_bfloat16(heads: OpenVinoBackend) -> None:
    assert heads._any_shape is not None and heads._any_shape.heads is not None
    products = ("FullyConnected", "MatMul", "Convolution")
    own = executed(heads._any_shape.heads._request.get_compiled_model())
    assert {node[2] for node in own if node[0] in products} == {"f32"}
    found = executed(heads._any_shape.request.get_compiled_model())
    assert {node[2] for node in found if node[0] in products} == {"bf16"}
    assert not [node for node in found if node[0] in products and "heads." in node[1]]


@pytest.mark.parametrize("shape", [(2, 42, 56), (1, 45, 31)])
def test_answers_of_heads_are_near_those_in_float32(
    heads: OpenVinoBackend, bundle_heads: Path, shape: tuple[int, ...]
) -> None:
    (graph,) = Manifest.read(bundle_heads).graphs
    feed = {"pixels": images(*shape)}
    float32 = OpenVinoBackend(bundle_heads / "fp32.onnx", threads=None)
    want = float32.infer(feed, graph.outputs)
    heads.prepare({"pixels": images(2, 42, 56)})  # once for any shape, once for this one
    for name, got in heads.infer(feed, graph.outputs).items():
        assert got.shape == want[name].shape
        if got.dtype == np.uint8:
            assert (got != want[name]).mean() < 0.1, name
        else:
            difference = np.linalg.norm(got - want[name])
            assert difference < 0.05 * np.linalg.norm(want[name]), name


def test_the_export_measures_its_limits(bundle_s_reg: Path) -> None:
    fp32, fp16 = Manifest.read(bundle_s_reg).graphs
    limits = fp32.bf16_limits
    assert fp16.bf16_limits is None
    assert limits is not None and not limits.say_nothing
    assert fp16.limits.relative_l2 is not None and limits.relative_l2 is not None
    assert 4 < limits.relative_l2 / fp16.limits.relative_l2 < 16  # 3 bits of the fraction fewer


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an x86 says what it can do; there is no such file yet."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr("dinov2rt.runtime.cpu._CPUINFO", file)
    monkeypatch.setattr(backend_module, "is_x86", lambda: True)
    return file


@pytest.mark.parametrize("flags", ["avx2 avx512f avx512_vnni", "avx2 amx_tile amx_int8"])
def test_a_cpu_without_the_instructions_is_refused(
    flags: str, cpuinfo: Path, bundle_s_reg: Path
) -> None:
    cpuinfo.write_text(f"model name : Old Xeon\nflags : {flags}\n")
    reason = cannot_run_bf16()
    assert reason is not None
    assert reason.startswith("Old Xeon has neither AVX512_BF16 nor AMX-BF16, without which ")
    with pytest.raises(BackendError) as error:
        dinov2rt.load(bundle_s_reg, precision="bf16")
    assert reason in str(error.value)


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_with_either_of_them_runs_it(flag: str, cpuinfo: Path) -> None:
    cpuinfo.write_text(f"model name : Any\nflags : avx2 {flag}\n")
    assert cannot_run_bf16() is None


def test_where_the_system_does_not_say_openvino_is_asked(cpuinfo: Path) -> None:
    assert not cpuinfo.exists()
    claims = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert (cannot_run_bf16() is None) == ("BF16" in claims)
