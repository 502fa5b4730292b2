"""Int8 runs in OpenVINO on the CPU, and nowhere else."""

from pathlib import Path

import pytest

import dinov2rt
from dinov2rt.engines.options import BuildOptions
from dinov2rt.runtime.errors import BackendError, InputError
from dinov2rt.runtime.precision import Precision


@pytest.mark.parametrize(
    ("device", "backend", "message"),
    [
        ("cuda", None, "cuda int8: graphs run as"),
        ("auto", "onnxruntime", "onnxruntime auto int8: graphs run as"),
        ("auto", "tensorrt", "int8 is for OpenVINO on the CPU"),
        ("cpu", None, "the bundle holds no int8 graph"),
    ],
)
def test_elsewhere_it_is_refused(
    bundle_s_reg: Path, device: str, backend: str | None, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        dinov2rt.load(bundle_s_reg, device=device, backend=backend, precision="int8")


def test_no_plan_is_made_of_it() -> None:
    with pytest.raises(InputError, match="int8 graphs are for OpenVINO on the CPU"):
        BuildOptions(precision=Precision.INT8)
