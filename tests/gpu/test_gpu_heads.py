"""Heads on a GPU: in a plan, where resampling runs as TensorRT has it, and in ONNX Runtime."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2rt.bundle.variants import find_variant
from dinov2rt.engines.build import build_plan
from dinov2rt.engines.options import BuildOptions
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.heads.checkpoint import HeadSource
from dinov2rt.runtime.gpu.cuda import Gpu
from dinov2rt.runtime.gpu.device_arrays import is_on_gpu
from dinov2rt.runtime.model import Model, load

pytestmark = pytest.mark.gpu

Noise = Callable[[int, int, int], NDArray[np.uint8]]
HEADS = ("linear", "nyu-linear4", "kitti-dpt", "ade20k-linear")


@pytest.fixture(scope="module")
def bundle(gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("gpu") / "heads"
    heads = tuple(HeadSource(name, "synthetic:0") for name in HEADS)
    export_bundle(find_variant("dinov2_vits14"), "synthetic:0", folder, ExportOptions(heads=heads))
    return folder


@pytest.fixture(scope="module")
def plan(bundle: Path, plan_gpu: Gpu) -> Iterator[Model]:  # noqa: ARG001
    build_plan(bundle, BuildOptions(target="current", max_batch=2, max_size=518))
    with load(bundle, backend="tensorrt", verify=True) as model:
        yield model


def test_a_plan_holds_the_limits_of_every_head(plan: Model) -> None:
    report = plan.verify()
    assert report, report
    outputs = {"logits", "depth_nyu_linear4", "depth_kitti_dpt", "segmentation"}
    assert {task.output for task in report.tasks} >= outputs


def test_onnxruntime_cuda_holds_the_limits_of_every_head(bundle: Path) -> None:
    with load(bundle, device="cuda", backend="onnxruntime") as model:
        report = model.verify()
    assert report, report


def test_images_on_the_gpu_are_answered_there(plan: Model, noise: Noise) -> None:
    torch = pytest.importorskip("torch")
    pixels = noise(2, 224, 224)
    images: Any = torch.from_numpy(pixels).cuda()
    want, got = plan.predict(pixels), plan.predict(images, device_outputs=True)
    assert list(got) == list(HEADS)
    answers = ("logits", "metres", "metres", "classes")
    for head, name in zip(HEADS, answers, strict=True):
        value = getattr(got[head], name)
        assert is_on_gpu(value)
        on_host = torch.from_dlpack(value).cpu().numpy()
        np.testing.assert_array_equal(on_host, getattr(want[head], name))
