"""Checks why a candidate cannot run, without loading its library; None means that it can."""

import os
import shutil
from importlib import metadata
from importlib.util import find_spec

from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends import onnxruntime as ort
from dinov2rt.runtime.backends.modes import Device
from dinov2rt.runtime.cpu import this_cpu

IN_TRANSFORMERS = ("linear", "nyu-dpt", "kitti-dpt")
"""Heads that transformers computes as the official code does: Dinov2ForImageClassification and
DPTForDepthEstimation."""


def lacks(*packages: str) -> str | None:
    """The `packages` that are not installed, with the command that installs them, or None."""
    missing = [package for package in packages if find_spec(package) is None]
    return f"{missing[0]} is not installed; pip install {' '.join(missing)}" if missing else None


NO_BF16_LIMITS = (
    "the bundle has no limits for bf16 on a CPU: its export did not measure them, or its heads did "
    "not hold theirs; exporting it again with fp32 tells which"
)


def cannot_run_in_bf16(workload: Workload) -> str | None:
    """Why bfloat16 on a CPU cannot run: the CPU lacks it, or the bundle has no limits for it."""
    if workload.device != "cpu":
        return "this candidate is bfloat16 on a CPU; on a GPU take float16 autocast"
    cpu = this_cpu()
    if not cpu.multiplies_bf16:
        return f"{cpu.model} has neither AVX512_BF16 nor AMX-BF16; bfloat16 is no faster there"
    if not any(graph.in_bf16 for graph in workload.manifest.graphs):
        return NO_BF16_LIMITS
    return None


def cannot_run_torch(workload: Workload, *, autocast: Precision | None = None) -> str | None:
    """Why PyTorch cannot run, in float32 or under autocast: float16 on GPUs, bfloat16 on CPUs."""
    if autocast is Precision.FP16 and workload.device == "cpu":
        return "float16 autocast is for GPUs; on a CPU take the candidate without it"
    if autocast is Precision.BF16 and (reason := cannot_run_in_bf16(workload)) is not None:
        return reason
    if (reason := lacks("torch")) is not None:
        return reason
    version = metadata.version("torch")
    if workload.device == "cuda" and version.endswith("+cpu"):
        return f"torch {version} is built without CUDA; install a build of torch for CUDA"
    return None


def cannot_compile(workload: Workload, *, autocast: Precision | None) -> str | None:
    """Why torch.compile cannot run: it needs C++ for a CPU, Triton for a GPU."""
    if (reason := cannot_run_torch(workload, autocast=autocast)) is not None:
        return reason
    if workload.device == "cuda":
        return lacks("triton")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return (
            f"torch.compile needs a C++ compiler, and {compiler} is not on the PATH; "
            "install it, or name another one in the environment variable CXX"
        )
    return None


def cannot_run_transformers(workload: Workload, *, precision: Precision) -> str | None:
    """Why transformers cannot run; it has some of the official heads, one in each model."""
    heads = [head.name for head in workload.manifest.heads]
    if heads and not (len(heads) == 1 and heads[0] in IN_TRANSFORMERS):
        return (
            f"transformers has no model with the heads {', '.join(heads)}; it has one for each of "
            f"{', '.join(IN_TRANSFORMERS)}"
        )
    architecture = workload.manifest.architecture
    if mlp_ratio_of(architecture) is None or not architecture.layer_scale:
        return (
            "transformers has no DINOv2 of this architecture: its models have LayerScale, and a "
            "feed-forward width that follows from a whole mlp_ratio"
        )
    needs_bf16 = precision is Precision.BF16
    reason = cannot_run_in_bf16(workload) if needs_bf16 else None
    return reason or cannot_run_torch(workload) or lacks("transformers")


def mlp_ratio_of(architecture: Architecture) -> int | None:
    """The `mlp_ratio` that gives transformers' model this feed-forward width, or None.

    Source: `Dinov2MLP` and `Dinov2SwiGLUFFN` in `modeling_dinov2.py`: SwiGLU keeps two thirds,
    rounded up to a multiple of 8.
    """
    for ratio in range(1, architecture.hidden_dim * 2 // architecture.embed_dim + 2):
        width = architecture.embed_dim * ratio
        is_gated = architecture.ffn == "swiglu"
        if architecture.hidden_dim == ((width * 2 // 3 + 7) // 8 * 8 if is_gated else width):
            return ratio
    return None


def cannot_run_onnxruntime(workload: Workload) -> str | None:
    """Why a plain export in ONNX Runtime cannot run; any build of torch can write the file."""
    return lacks("torch", "onnx", "onnxscript") or ort.cannot_run(_device(workload))


def cannot_run_openvino(workload: Workload, *, precision: Precision) -> str | None:
    """Why OpenVINO cannot run; it does not support NVIDIA GPUs."""
    if workload.device != "cpu":
        return "OpenVINO does not run on NVIDIA GPUs; it is measured on the CPU alone"
    if precision is Precision.BF16 and (reason := cannot_run_in_bf16(workload)) is not None:
        return reason
    return lacks("torch", "openvino")


def _device(workload: Workload) -> Device:
    return "cpu" if workload.device == "cpu" else "cuda"
