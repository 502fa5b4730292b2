"""`config.pbtxt`: the configuration of a model in NVIDIA Triton Inference Server.

The fields come from `ModelConfig` in Triton's `model_config.proto`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dinov2rt.bundle.profiles import BatchShape, ProfileEntry
from dinov2rt.engines.profile_syntax import tensor_shape

WARMUP_SIDE = 224
"""Side in pixels of the warm-up image of an ONNX model; a plan uses each profile's opt shape."""

DYNAMIC = -1

Field = tuple[str, Any]


class Symbol(StrEnum):
    """An enum value, which is written without quotes."""

    UINT8 = "TYPE_UINT8"
    INT64 = "TYPE_INT64"
    FP16 = "TYPE_FP16"
    FP32 = "TYPE_FP32"
    ANY_DEVICE = "KIND_AUTO"
    GPU = "KIND_GPU"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the graph; `shape` includes the batch axis, and -1 is dynamic.

    An input is optional if the graph has a default for it.
    """

    name: str
    data_type: Symbol
    shape: tuple[int, ...]
    is_optional: bool = False


def onnx_config(
    name: str,
    filename: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    max_batch: int,
    queue_delay_us: int,
) -> str:
    """The configuration of an ONNX graph.

    With `max_batch` 0, Triton does not batch: shapes include the batch axis, and optional inputs
    are listed. Otherwise optional inputs are left out, because Triton's ONNX Runtime backend
    refuses them in a model that batches; the graph then uses its defaults.
    """
    listed = [tensor for tensor in inputs if not (max_batch and tensor.is_optional)]
    pixels = BatchShape(1, WARMUP_SIDE, WARMUP_SIDE)
    return to_pbtxt(
        [
            *_head(name, "onnxruntime_onnx", filename, max_batch),
            *_tensors(listed, outputs, max_batch),
            ("instance_group", [[("count", 1), ("kind", Symbol.ANY_DEVICE)]]),
            *_dynamic_batching(max_batch, queue_delay_us),
            ("model_warmup", [_warmup("image", listed, pixels, max_batch)]),
        ]
    )


def plan_config(
    name: str,
    filename: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    profiles: Sequence[ProfileEntry],
    queue_delay_us: int,
) -> str:
    """The configuration of a TensorRT plan; every instance loads all profiles.

    The size of a request's images decides its profile, so that the largest batch is the smallest
    maximum of all profiles. Optional inputs are constants in a plan and are left out.
    """
    max_batch = min(profile.shapes.max.batch for profile in profiles)
    required = [tensor for tensor in inputs if not tensor.is_optional]
    group = [
        ("count", 1),
        ("kind", Symbol.GPU),
        ("profile", [str(index) for index in range(len(profiles))]),
    ]
    warmups = [
        _warmup(f"profile {profile.name}", required, profile.shapes.opt, max_batch)
        for profile in profiles
    ]
    return to_pbtxt(
        [
            *_head(name, "tensorrt_plan", filename, max_batch),
            *_tensors(required, outputs, max_batch),
            ("instance_group", [group]),
            *_dynamic_batching(max_batch, queue_delay_us),
            ("model_warmup", warmups),
        ]
    )


def to_pbtxt(fields: Sequence[Field], indent: str = "") -> str:
    """`fields` in protobuf's text format; a list of messages becomes a repeated field."""
    return "".join(_lines(name, value, indent) for name, value in fields)


def _lines(name: str, value: Any, indent: str) -> str:
    if _is_message(value):
        return f"{indent}{name} {{\n{to_pbtxt(value, f'{indent}  ')}{indent}}}\n"
    if isinstance(value, list) and value and _is_message(value[0]):
        return "".join(_lines(name, message, indent) for message in value)
    return f"{indent}{name}: {_scalar(value)}\n"


def _is_message(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], tuple)


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, Symbol | int) else json.dumps(value)


def _head(name: str, platform: str, filename: str, max_batch: int) -> list[Field]:
    return [
        ("name", name),
        ("platform", platform),
        ("default_model_filename", filename),
        ("max_batch_size", max_batch),
        ("version_policy", [("latest", [("num_versions", 1)])]),
    ]


def _tensors(inputs: Sequence[Tensor], outputs: Sequence[Tensor], max_batch: int) -> list[Field]:
    return [
        ("input", [_tensor(tensor, max_batch) for tensor in inputs]),
        ("output", [_tensor(tensor, max_batch) for tensor in outputs]),
    ]


def _tensor(tensor: Tensor, max_batch: int) -> list[Field]:
    optional = [("optional", True)] if tensor.is_optional else []
    dims = _without_batch(tensor.shape, max_batch)
    return [("name", tensor.name), ("data_type", tensor.data_type), ("dims", dims), *optional]


def _without_batch(shape: Sequence[int], max_batch: int) -> list[int]:
    """The dims for Triton, which adds the batch axis itself if the model batches."""
    return list(shape[1:] if max_batch else shape)


def _dynamic_batching(max_batch: int, queue_delay_us: int) -> list[Field]:
    if max_batch < 2:
        return []
    return [("dynamic_batching", [("max_queue_delay_microseconds", queue_delay_us)])]


def _warmup(name: str, inputs: Sequence[Tensor], shape: BatchShape, max_batch: int) -> list[Field]:
    """A warm-up request of zeros for `inputs`; the first input takes the images."""
    shapes: Mapping[str, Sequence[int]] = {tensor.name: tensor.shape for tensor in inputs[1:]} | {
        inputs[0].name: tensor_shape(shape, inputs[0].name)
    }
    return [
        ("name", name),
        ("batch_size", min(shape.batch, max_batch) if max_batch else 1),
        *(("inputs", _warmup_input(tensor, shapes[tensor.name], max_batch)) for tensor in inputs),
    ]


def _warmup_input(tensor: Tensor, shape: Sequence[int], max_batch: int) -> list[Field]:
    value = [
        ("data_type", tensor.data_type),
        ("dims", _without_batch(shape, max_batch)),
        ("zero_data", True),
    ]
    return [("key", tensor.name), ("value", value)]
