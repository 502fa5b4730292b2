"""The fused graph in ONNX Runtime on a GPU: accuracy, arrays on the GPU, memory and threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import BackendError, InputError
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.runtime.backends.onnxruntime import cannot_run
from dinov2rt.runtime.gpu.cuda import Gpu, call
from dinov2rt.runtime.model import Model, load

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

Noise = Callable[[int, int, int], NDArray[np.uint8]]
MIB = 2**20


@pytest.fixture(scope="session")
def exported(gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    if (reason := cannot_run("cuda")) is not None:
        pytest.skip(reason)
    bundle = tmp_path_factory.mktemp("fused") / "s"
    export_bundle(find_variant("dinov2_vits14_reg"), "synthetic:0", bundle, ExportOptions())
    return bundle


@pytest.fixture(scope="module")
def fused(exported: Path) -> Iterator[Model]:
    with load(exported, device="cuda", backend="onnxruntime", precision="fp16") as model:
        yield model


@pytest.fixture(scope="module")
def eager_like(exported: Path) -> Iterator[Model]:
    """The same weights in float32 on the CPU."""
    with load(exported, backend="onnxruntime", device="cpu", precision="fp32") as model:
        yield model


def assert_near(got: NDArray[np.float32], want: NDArray[np.float32]) -> None:
    assert np.linalg.norm(got - want) < 2e-3 * np.linalg.norm(want)


def test_it_is_chosen_by_default_and_passes_its_limits(exported: Path) -> None:
    with load(exported, backend="onnxruntime") as model:
        assert "fp16 on onnxruntime" in model.describe().splitlines()[0]
        assert model.graph == model.manifest.cuda_graph
        report = model.verify()
    assert report, report


@pytest.mark.parametrize("shape", [(1, 14, 14), (3, 98, 126), (2, 231, 345), (1, 518, 518)])
def test_the_first_calls_and_the_captured_ones_agree(
    fused: Model, eager_like: Model, noise: Noise, shape: tuple[int, int, int]
) -> None:
    pixels = noise(*shape)
    want = eager_like(pixels)
    for _ in range(4):
        got = fused(pixels)
        for name, value in want.outputs.items():
            assert_near(got.outputs[name], value)
    other = noise(shape[0], shape[1], shape[2])[:, ::-1]
    assert_near(fused(other).cls_token, eager_like(other).cls_token)


def test_captured_shapes_and_calls_between_them_do_not_disturb_each_other(
    fused: Model, eager_like: Model, noise: Noise
) -> None:
    """A CUDA graph must not read memory that a later call overwrites."""
    fused.warm_up([(1, 98, 126), (1, 224, 224)])
    for turn in range(3):
        for shape in ((1, 98, 126), (1, 14 * (3 + turn), 42), (1, 224, 224)):
            pixels = np.roll(noise(*shape), turn, axis=1)
            assert_near(fused(pixels).patch_tokens, eager_like(pixels).patch_tokens)


def test_shapes_captured_in_one_thread_serve_another(
    fused: Model, eager_like: Model, noise: Noise
) -> None:
    pixels = noise(2, 98, 126)
    fused.warm_up([(2, 98, 126)])
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(fused, pixels).result()
    assert_near(got.patch_tokens, eager_like(pixels).patch_tokens)


def test_padding_tells_shapes_apart(fused: Model, eager_like: Model, noise: Noise) -> None:
    pixels = noise(1, 100, 120)
    for snap in ("crop", "pad", "crop", "pad", "center-crop"):
        assert_near(fused(pixels, snap=snap).cls_token, eager_like(pixels, snap=snap).cls_token)


def test_arrays_on_the_gpu_both_ways(fused: Model, eager_like: Model, noise: Noise) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for seed in range(5):
            pixels = np.roll(noise(4, 98, 126), seed, axis=1)
            images = torch.from_numpy(pixels).cuda(non_blocking=True)
            features = fused(images, device_outputs=True)
            cls_token = torch.from_dlpack(features.cls_token)
            assert cls_token.is_cuda
            assert_near(cls_token.cpu().numpy(), eager_like(pixels).cls_token)


def test_several_threads_get_their_own_results(
    fused: Model, eager_like: Model, noise: Noise
) -> None:
    batches = [np.roll(noise(1 + k % 3, 14 * (1 + k % 5), 28), k, axis=2) for k in range(40)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(fused, batches))
    for pixels, features in zip(batches, results, strict=True):
        assert_near(features.patch_tokens, eager_like(pixels).patch_tokens)


def test_memory_stays_bounded_over_many_shapes(fused: Model, noise: Noise) -> None:
    shapes = [(1 + k % 4, 14 * (4 + k), 14 * (20 - k)) for k in range(16)]
    fused.warm_up([(4, 280, 280), *shapes])
    free, _ = call("cudaMemGetInfo")
    for _ in range(3):
        fused.warm_up(shapes)
    after, _ = call("cudaMemGetInfo")
    assert free - after < 64 * MIB
    assert fused(noise(*shapes[0])).cls_token.shape == (shapes[0][0], 384)


def test_phases_add_up(fused: Model, noise: Noise) -> None:
    pixels = noise(8, 224, 224)
    fused.warm_up([(8, 224, 224)])
    phases = fused.phases(pixels)
    assert phases is not None
    assert 0 < phases.host_to_device_ms < phases.compute_ms
    assert phases.device_to_host_ms > 0


def test_a_gpu_that_is_not_there_is_an_error(exported: Path) -> None:
    with pytest.raises(BackendError, match="GPUs here are cuda:0 to"):
        load(exported, device="cuda:99")
    with load(exported, device="cuda:0", backend="onnxruntime") as model:
        assert model(np.zeros((1, 14, 14, 3), np.uint8)).cls_token.shape == (1, 384)


def test_the_callers_device_stays_current_and_the_second_gpu_computes(
    exported: Path, eager_like: Model, noise: Noise
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    torch.zeros(1, device="cuda:0")
    pixels = noise(1, 98, 126)
    with load(exported, device="cuda:1", backend="onnxruntime") as model:
        assert torch.cuda.current_device() == 0
        for _ in range(3):
            assert_near(model(pixels).cls_token, eager_like(pixels).cls_token)
        assert torch.cuda.current_device() == 0


def test_float_images_on_the_gpu_are_refused_by_a_pixel_graph(fused: Model) -> None:
    with pytest.raises(InputError, match="dtype float32"):
        fused(torch.zeros(1, 3, 28, 28, device="cuda"))  # type: ignore[call-overload]


def test_a_closed_model_says_so(exported: Path) -> None:
    model = load(exported, device="cuda", backend="onnxruntime")
    model.close()
    with pytest.raises(BackendError, match="closed"):
        model(np.zeros((1, 14, 14, 3), np.uint8))
