"""Threads, memory, graphs and arrays on the GPU."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.benchmarks.peers.own import OwnRunner
from dinov2rt.benchmarks.peers.pytorch import open_eager
from dinov2rt.bundle.entries import FileEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError, BundleError, InputError
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.gpu.cuda import call
from dinov2rt.runtime.gpu.execution import SHAPES_PER_CONTEXT
from dinov2rt.runtime.model import Model, load

pytestmark = pytest.mark.gpu

Noise = Callable[[int, int, int], NDArray[np.uint8]]
MIB = 2**20
SHAPES = ((1, 224, 224), (3, 224, 224), (2, 518, 518), (2, 98, 126))

needs_torch = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this torch has no CUDA, and so no array on the GPU"
)


def used_bytes() -> int:
    free, total = call("cudaMemGetInfo")
    return int(total) - int(free)


def test_eight_threads_get_the_same_results_as_one(plan: Model, noise: Noise) -> None:
    alone = {shape: plan(noise(*shape)) for shape in SHAPES}
    jobs = SHAPES * 50
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda shape: plan(noise(*shape)), jobs))
    for shape, features in zip(jobs, together, strict=True):
        for name, value in features.outputs.items():
            np.testing.assert_allclose(value, alone[shape].outputs[name], rtol=1e-2, atol=1e-2)


def test_ten_thousand_calls_take_no_more_memory(plan: Model, noise: Noise) -> None:
    batches = [noise(*shape) for shape in SHAPES]
    for pixels in batches * 3:
        plan(pixels, outputs=["cls_token"])
    before = used_bytes()
    for index in range(10_000):
        plan(batches[index % len(batches)], outputs=["cls_token"])
    assert used_bytes() - before <= 2 * MIB


def test_graphs_of_many_shapes_stay_bounded(plan: Model, noise: Noise) -> None:
    def visit(count: int) -> None:
        for step in range(count):
            pixels = noise(1, 14 * (1 + step % 30), 14 * (2 + step // 30))
            for _ in range(2):
                plan(pixels, outputs=["cls_token"])

    visit(4 * SHAPES_PER_CONTEXT)
    before = used_bytes()
    visit(20 * SHAPES_PER_CONTEXT)
    assert used_bytes() - before <= 64 * MIB


def test_closing_frees_the_memory(built: Path, noise: Noise) -> None:
    before = used_bytes()
    for _ in range(3):
        with load(built, backend="tensorrt", verify=True) as model:
            model(noise(4, 518, 518))
    assert used_bytes() - before <= 64 * MIB
    with pytest.raises(BackendError, match="the model is closed; load it again"):
        model(noise(1, 224, 224))


def test_streamed_batches_come_back_in_their_order(plan: Model, noise: Noise) -> None:
    batches = [noise(*SHAPES[index % len(SHAPES)]) ^ np.uint8(index) for index in range(40)]
    for pixels, got in zip(batches, plan.map(batches), strict=True):
        assert isinstance(got, Features)
        np.testing.assert_allclose(got.cls_token, plan(pixels).cls_token, rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("plan")  # it is verified by that, or loading it would warn
def test_the_phases_of_a_call_sum_to_at_most_its_time(built: Path, noise: Noise) -> None:
    runner = OwnRunner(Workload(built, "cuda", 1), backend="tensorrt", precision=Precision.FP16)
    pixels = noise(4, 518, 518)
    for _ in range(3):  # plain, captured, replayed
        started = time.perf_counter()
        phases = runner.phases(pixels)
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        assert phases is not None
        parts = (phases.host_to_device_ms, phases.compute_ms, phases.device_to_host_ms)
        assert min(parts) > 0
        assert sum(parts) < elapsed_ms
    runner.close()


@needs_torch
@pytest.mark.parametrize("autocast", [False, True])
def test_the_phases_of_eager_pytorch_sum_to_at_most_the_calls_time(
    built: Path, noise: Noise, autocast: bool
) -> None:
    runner = open_eager(Workload(built, "cuda", 1), autocast=autocast)
    prepared = runner.prepare(noise(4, 518, 518))
    runner.run(prepared)
    started = time.perf_counter()
    phases = runner.phases(prepared)
    elapsed_ms = 1e3 * (time.perf_counter() - started)
    assert phases is not None
    parts = (phases.host_to_device_ms, phases.compute_ms, phases.device_to_host_ms)
    assert min(parts) > 0
    assert sum(parts) < elapsed_ms


@needs_torch
@pytest.mark.parametrize("protocol", ["dlpack", "cuda_array_interface"])
def test_arrays_on_the_gpu_go_in(plan: Model, noise: Noise, protocol: str) -> None:
    pixels = noise(2, 224, 224)
    on_gpu: object = torch.from_numpy(pixels).cuda()
    if protocol == "cuda_array_interface":
        interface = on_gpu.__cuda_array_interface__  # type: ignore[attr-defined]
        on_gpu = _Bare(on_gpu, interface)
    got, want = plan(on_gpu), plan(pixels)  # type: ignore[call-overload]
    np.testing.assert_array_equal(got.cls_token, want.cls_token)


class _Bare:
    """An array that offers `__cuda_array_interface__` and nothing else."""

    def __init__(self, owner: object, interface: dict[str, object]) -> None:
        self.__cuda_array_interface__ = interface | {"version": 3, "stream": 1}
        self.owner, self.shape, self.dtype = owner, interface["shape"], "uint8"

    def __len__(self) -> int:
        return int(self.shape[0])  # type: ignore[index]

    def __getitem__(self, rows: slice) -> "_Bare":
        assert rows == slice(0, len(self)) or rows.stop >= len(self)
        return self


@needs_torch
def test_outputs_stay_on_the_gpu_on_the_callers_stream(plan: Model, noise: Noise) -> None:
    pixels = noise(2, 224, 224)
    want = plan(pixels)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        features = plan(torch.from_numpy(pixels).cuda(), device_outputs=True)  # type: ignore[call-overload]
        tokens = torch.from_dlpack(features.patch_tokens)
        doubled = tokens * 2
    stream.synchronize()
    assert tokens.shape == (2, 16, 16, want.patch_tokens.shape[-1])
    np.testing.assert_array_equal(doubled.cpu().numpy(), want.patch_tokens * 2)


@needs_torch
def test_outputs_on_the_gpu_are_not_overwritten_and_are_freed(plan: Model, noise: Noise) -> None:
    kept = torch.from_dlpack(plan(noise(2, 224, 224), device_outputs=True).cls_token)
    copy = kept.clone()
    torch.cuda.synchronize()
    before = used_bytes()
    for _ in range(500):
        plan(np.zeros((2, 224, 224, 3), np.uint8), device_outputs=True)
    torch.cuda.synchronize()
    assert torch.equal(kept, copy)
    assert used_bytes() - before <= 64 * MIB


@needs_torch
def test_a_strided_array_on_the_gpu_is_refused(plan: Model, noise: Noise) -> None:
    strided = torch.from_numpy(noise(2, 224, 448)).cuda()[:, :, ::2]
    with pytest.raises(InputError, match="make them contiguous first"):
        plan(strided)  # type: ignore[call-overload]


def test_a_plan_with_one_flipped_byte_is_refused(
    built: Path, copy_of: Callable[[Path], Path]
) -> None:
    bundle = copy_of(built)
    entry = Manifest.read(bundle).plans[0]
    file = bundle / entry.file.path
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"has SHA-256 .+ rebuild with: dinov2rt build"):
        load(bundle, backend="tensorrt")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "1.0.0"}, "TensorRT version is 1.0.0, this machine's is"),
        ({"target": "sm75"}, "compute capability is sm75, this machine's is"),
    ],
)
def test_a_plan_for_another_machine_is_refused(
    built: Path, copy_of: Callable[[Path], Path], changes: dict[str, str], says: str
) -> None:
    bundle = copy_of(built)
    manifest = Manifest.read(bundle)
    plan = replace(manifest.plans[0], **changes)  # type: ignore[arg-type]
    replace(manifest, plans=(plan,)).write(bundle)
    with pytest.raises(BackendError, match=says):
        load(bundle, backend="tensorrt")


def test_a_file_that_is_not_a_plan_is_refused(built: Path, copy_of: Callable[[Path], Path]) -> None:
    bundle = copy_of(built)
    manifest = Manifest.read(bundle)
    path = manifest.plans[0].file.path
    (bundle / path).write_bytes(b"no plan" * 100)
    plan = replace(manifest.plans[0], file=FileEntry.of(bundle, path))
    replace(manifest, plans=(plan,)).write(bundle)
    with pytest.raises(BackendError, match="does not load with tensorrt") as error:
        load(bundle, backend="tensorrt")
    assert "\n" not in str(error.value)
