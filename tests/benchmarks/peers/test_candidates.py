import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2rt.benchmarks.harness.photo_batch import photo_batch
from dinov2rt.benchmarks.peers import requirements
from dinov2rt.benchmarks.peers.candidate import Candidate, Runner, RunnerWithPhases, Workload
from dinov2rt.benchmarks.peers.candidates import CANDIDATES, find, peers
from dinov2rt.benchmarks.peers.plain_export import plain_export
from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.normalization import normalize
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import NO_EXTRAS, InputFormat
from dinov2rt.errors import BackendError, InputError, WeightsError
from dinov2rt.export.golden import eager_case
from dinov2rt.export.model import load_eager
from dinov2rt.export.weights.checkpoint import load_weights
from dinov2rt.runtime import cpu
from dinov2rt.runtime.cpu import this_cpu

COMPILER_WARNING = "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
"""Torch's own, when its compiler is first imported."""

NOT_IN_OPENVINO = "dinov2rt runs openvino only as cpu fp32, cpu bf16, cpu int8"
needs_bf16 = pytest.mark.skipif(
    not this_cpu().multiplies_bf16, reason="bfloat16 needs AVX512_BF16 or AMX-BF16"
)

SIZES = (ImageSize(98, 126), ImageSize(126, 98), ImageSize(56, 56))
"""The first two have as many patches as each other, on different grids."""


@pytest.fixture(params=["bundle_s", "bundle_s_reg"])
def workload(request: pytest.FixtureRequest) -> Workload:
    return Workload(request.getfixturevalue(request.param), "cpu", threads=1)


@contextmanager
def opened(name: str, workload: Workload) -> Iterator[Runner]:
    (candidate,) = find([name])
    assert candidate.cannot_run(workload) is None
    runner = candidate.open(workload)
    try:
        yield runner
    finally:
        runner.close()


def tokens_of(runner: Runner, pixels: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
    return runner.outputs(runner.run(runner.prepare(pixels)))


def distance(runner: Runner, workload: Workload, size: ImageSize, batch: int = 1) -> float:
    """The largest relative L2 between an output and eager float32's; all outputs must be there."""
    pixels = photo_batch(batch, size)
    manifest = workload.manifest
    weights = load_weights(manifest.weights.source, manifest.architecture).state_dict
    model = load_eager(manifest.architecture, weights)
    want = eager_case(model, "cell", pixels, InputFormat.PIXELS, NO_EXTRAS).outputs
    got = tokens_of(runner, pixels)
    assert list(got) == list(want)
    assert all(got[name].shape == want[name].shape for name in want)
    assert all(got[name].dtype == np.float32 for name in want)
    return max(float(np.linalg.norm(got[n] - want[n]) / np.linalg.norm(want[n])) for n in want)


def test_eager_gives_the_tokens_of_the_reference(workload: Workload) -> None:
    with opened("eager", workload) as runner:
        assert distance(runner, workload, SIZES[0], batch=2) < 1e-5
        assert runner.version.startswith("torch 2")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_product_gives_the_tokens_of_the_reference(backend: str, workload: Workload) -> None:
    with opened(f"dinov2rt-{backend}-fp32", workload) as runner:
        assert distance(runner, workload, SIZES[0], batch=2) < 1e-5
        assert runner.version.startswith("dinov2rt ")
        assert f"fp32 on {backend} " in runner.version


@needs_bf16
@pytest.mark.parametrize(
    "name",
    [
        "eager-bf16",
        "transformers-bf16",
        "dinov2rt-openvino-bf16",
        pytest.param("openvino-bf16", marks=pytest.mark.slow),
        pytest.param("compile-bf16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_what_computes_in_bfloat16_is_near_the_reference_and_not_float32(
    name: str, bundle_s_reg: Path
) -> None:
    workload = Workload(bundle_s_reg, "cpu", threads=1)
    with opened(name, workload) as runner:
        assert 1e-3 < distance(runner, workload, SIZES[0]) < 3e-2


def test_peers_in_bfloat16_stand_beside_those_in_float32_where_it_is_asked_for() -> None:
    plain = [each.name for each in peers(["eager", "openvino", "onnxruntime"], "cpu")]
    assert plain == ["eager", "openvino", "onnxruntime"]
    both = peers(["eager", "openvino", "onnxruntime"], "cpu", in_bf16=True)
    assert [each.name for each in both] == [*plain, "eager-bf16", "openvino-bf16"]
    assert {each.precision for each in both} == {Precision.FP32, Precision.BF16}
    assert "eager-bf16" not in [each.name for each in peers(["eager"], "cuda", in_bf16=True)]


@pytest.mark.parametrize(
    "name", ["eager-bf16", "compile-bf16", "transformers-bf16", "openvino-bf16"]
)
def test_bfloat16_is_not_measured_where_it_cannot_be_fast_or_has_no_limits(
    name: str, bundle_s: Path, pooling_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "_CPUINFO", info)
    info.write_text("model name : Old Xeon\nflags : avx2\n")
    assert reason(name, Workload(bundle_s, "cpu", 1)).startswith("Old Xeon has neither AVX512_BF16")
    info.write_text("model name : New\nflags : avx512_bf16\n")
    assert "no limits for bf16 on a CPU" in reason(name, Workload(pooling_bundle, "cpu", 1))


@pytest.mark.parametrize("name", ["eager", "dinov2rt-onnxruntime-fp32"])
def test_only_calls_on_a_gpu_have_phases(name: str, bundle_s: Path) -> None:
    with opened(name, Workload(bundle_s, "cpu", threads=1)) as runner:
        assert isinstance(runner, RunnerWithPhases)
        assert runner.phases(runner.prepare(photo_batch(1, SIZES[2]))) is None


def test_float32_of_torch_is_float32_on_a_gpu_as_well(bundle_s: Path) -> None:
    import torch

    torch.backends.cudnn.allow_tf32 = True  # its default
    with opened("eager", Workload(bundle_s, "cpu", threads=1)):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32


def test_the_product_runs_the_largest_batch_in_one_pass(bundle_s: Path) -> None:
    from dinov2rt.benchmarks.peers.own import OwnRunner

    workload = Workload(bundle_s, "cpu", threads=1)
    runner = OwnRunner(workload, backend="onnxruntime", precision=Precision.FP32)
    largest = np.empty((1024, 518, 518, 3), np.uint8)  # not touched, and so no memory
    (group,) = runner._model._passes.groups(largest, Snap.CROP)
    assert [len(feed["pixels"]) for feed in runner._model._passes.feeds(group)] == [1024]
    runner.close()


def test_transformers_agrees_on_the_trained_grid(workload: Workload) -> None:
    with opened("transformers", workload) as runner:
        assert distance(runner, workload, ImageSize(518, 518)) < 1e-5


def test_transformers_resamples_positions_as_the_official_code_does_with_registers_alone(
    workload: Workload,
) -> None:
    with opened("transformers", workload) as runner:
        found = distance(runner, workload, SIZES[0])
    if workload.manifest.architecture.num_registers:
        assert found < 1e-5
    else:  # it samples to a size, the official code by a scale that is 0.1 patches larger
        assert 1e-3 < found < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_plain_export_gives_the_tokens_of_the_reference_at_every_shape(
    name: str, workload: Workload
) -> None:
    with opened(name, workload) as runner:
        for size in SIZES:
            assert distance(runner, workload, size) < 1e-5
        assert distance(runner, workload, SIZES[0], batch=3) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own; what it writes is what is asked here
def test_a_plain_onnx_file_without_registers_is_silently_wrong_on_another_grid(
    bundle_s: Path, tmp_path: Path
) -> None:
    """Why one is made for each size; when this fails, `exports_any_size` can go."""
    import onnxruntime
    import torch

    from dinov2rt.benchmarks.peers.pytorch import load_all_tokens

    file, dynamic = tmp_path / "plain.onnx", {0: "batch", 2: "height", 3: "width"}
    module = load_all_tokens(Manifest.read(bundle_s))
    program = torch.onnx.export(
        module, (torch.zeros(2, 3, 98, 126),), dynamo=True, dynamic_shapes=(dynamic,)
    )
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(file)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    images = torch.from_numpy(normalize(photo_batch(1, SIZES[1])))
    got = session.run(None, {"images": images.numpy()})[0]
    want = module(images)[0].numpy()
    assert np.linalg.norm(got - want) / np.linalg.norm(want) > 1e-2


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.parametrize("name", ["compile", "compile-max-autotune"])
def test_compiled_gives_the_tokens_of_the_reference(name: str, bundle_s_reg: Path) -> None:
    workload = Workload(bundle_s_reg, "cpu", threads=1)
    with opened(name, workload) as runner:
        assert distance(runner, workload, SIZES[2]) < 1e-5
        assert distance(runner, workload, SIZES[0]) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_one_shape_too_many_fails_instead_of_running_eagerly(bundle_s: Path) -> None:
    import torch
    from torch._dynamo.exc import FailOnRecompileLimitHit

    torch._dynamo.reset()
    with opened("compile", Workload(bundle_s, "cpu", threads=1)) as runner:
        tokens_of(runner, photo_batch(1, SIZES[2]))
        with (
            torch._dynamo.config.patch(recompile_limit=1),
            pytest.raises(FailOnRecompileLimitHit, match="recompile_limit"),
        ):
            tokens_of(runner, photo_batch(1, SIZES[0]))


def test_every_candidate_can_be_sent_to_a_process_of_its_own() -> None:
    for candidate in CANDIDATES:
        assert pickle.loads(pickle.dumps(candidate)).name == candidate.name


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("eager", {"transformers", "openvino", "onnxruntime"}),
        ("onnxruntime", {"torch", "transformers", "openvino"}),
        ("openvino", {"torch", "transformers", "onnxruntime", "openvino_telemetry"}),
        ("dinov2rt-onnxruntime-fp32", {"torch", "transformers", "openvino"}),
        (
            "dinov2rt-openvino-fp32",
            {"torch", "transformers", "onnxruntime", "openvino_telemetry"},
        ),
    ],
)
def test_a_process_holds_the_library_of_its_candidate_alone(
    name: str, others: set[str], bundle_s: Path
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from dinov2rt.benchmarks.peers.candidate import Workload\n"
        "from dinov2rt.benchmarks.peers.candidates import find\n"
        f"(candidate,) = find(['{name}'])\n"
        "candidate.import_libraries()\n"
        f"candidate.open(Workload(Path('{bundle_s}'), 'cpu', 1)).close()\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert others.isdisjoint(done.stdout.split())


def test_candidates_are_found_in_the_order_asked_for() -> None:
    assert [found.name for found in find(["openvino", "eager"])] == ["openvino", "eager"]
    assert len({candidate.name for candidate in CANDIDATES}) == len(CANDIDATES)


def test_an_unknown_candidate_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"unknown candidate 'jax'; allowed are \"eager\", .*openvino"
    ):
        find(["eager", "jax"])


def reason(name: str, workload: Workload) -> str:
    (candidate,) = find([name])
    found = candidate.cannot_run(workload)
    assert found is not None
    return found


def test_autocast_is_for_gpus(bundle_s: Path) -> None:
    workload = Workload(bundle_s, "cpu", threads=1)
    assert reason("eager-autocast", workload).startswith("float16 autocast is for GPUs; on a CPU")
    assert reason("compile-autocast", workload).startswith("float16 autocast is for GPUs; on a CPU")


def test_a_missing_compiler_is_named(bundle_s: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload(bundle_s, "cpu", threads=1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert reason("compile", workload) == (
        "torch.compile needs a C++ compiler, and no-such-compiler is not on the PATH; "
        "install it, or name another one in the environment variable CXX"
    )


def test_missing_packages_are_named_with_the_command_that_adds_them() -> None:
    assert requirements.lacks("numpy") is None
    assert requirements.lacks("numpy", "no_such_package", "nor_this") == (
        "no_such_package is not installed; pip install no_such_package nor_this"
    )


def test_what_a_cpu_cannot_run_is_told(bundle_s: Path) -> None:
    workload = Workload(bundle_s, "cpu", threads=1)
    assert reason("dinov2rt-tensorrt-fp16", workload) == (
        "dinov2rt runs tensorrt only as cuda fp16, cuda bf16, cuda fp32"
    )
    assert "fp16 graph is for checking only" in reason("dinov2rt-onnxruntime-fp16", workload)


def test_what_a_bundle_does_not_hold_is_told(bundle_s: Path) -> None:
    workload = Workload(bundle_s, "cuda", threads=1)
    assert reason("dinov2rt-tensorrt-fp16", workload) == (
        f"the bundle holds no fp16 plan; make one with: dinov2rt build {bundle_s} --target sm80"
    )
    assert reason("dinov2rt-onnxruntime-bf16", workload) == (
        "dinov2rt runs onnxruntime only as cuda fp16, cuda fp32, cpu fp32, cpu fp16"
    )
    assert "OpenVINO does not run on NVIDIA GPUs" in reason("openvino", workload)
    assert reason("dinov2rt-openvino-fp32", workload) == NOT_IN_OPENVINO
    assert reason("dinov2rt-openvino-fp16", Workload(bundle_s, "cpu", 1)) == NOT_IN_OPENVINO


def test_other_weights_than_those_of_the_bundle_are_refused(
    bundle_s: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = copy_of(bundle_s)
    manifest = Manifest.read(bundle)
    other = dataclasses.replace(manifest.weights, source="synthetic:1")
    dataclasses.replace(manifest, weights=other).write(bundle)
    (eager,) = find(["eager"])
    with pytest.raises(WeightsError, match=r"synthetic:1 has SHA-256 .* export the bundle again"):
        eager.open(Workload(bundle, "cpu", threads=1))


def test_an_export_that_fails_says_why(tmp_path: Path) -> None:
    workload = Workload(tmp_path / "nothing", "cpu", threads=1)
    with pytest.raises(BackendError, match=r"plain onnx export for \[1, 3, 56, 56\] failed: .*no"):
        plain_export("onnx", workload, (1, 3, 56, 56), tmp_path / "plain.onnx")


def test_precisions_say_what_a_candidate_computes_in() -> None:
    found: dict[str, Candidate] = {candidate.name: candidate for candidate in CANDIDATES}
    assert found["compile-max-autotune"].precision is Precision.FP32
    assert found["compile-max-autotune-autocast"].precision is Precision.FP16
    assert {name for name, each in found.items() if not each.is_peer} == {
        f"dinov2rt-{backend}-{precision}"
        for backend in ("openvino", "onnxruntime", "tensorrt")
        for precision in Precision
    }
