"""Checks why a candidate cannot run, without loading its library; None means that it can."""

import os
import shutil
from importlib import metadata
from importlib.util import find_spec

from dinov2rt.benchmarks.peers.candidate import Task
from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends import onnxruntime as ort
from dinov2rt.runtime.backends import openvino
from dinov2rt.runtime.cpu import this_cpu


def lacks(*packages: str) -> str | None:
    """The `packages` that are not installed, with the command that installs them, or None."""
    missing = [package for package in packages if find_spec(package) is None]
    return f"{missing[0]} is not installed; pip install {' '.join(missing)}" if missing else None


def cannot_run_in_bf16(task: Task) -> str | None:
    """Why bfloat16 on a CPU cannot run: the CPU lacks it, or the bundle has no limits for it."""
    if task.device != "cpu":
        return "this candidate is bfloat16 on a CPU; on a GPU take float16 autocast"
    cpu = this_cpu()
    if not cpu.multiplies_bf16:
        return f"{cpu.model} has neither AVX512_BF16 nor AMX-BF16; bfloat16 is no faster there"
    if not any(graph.in_bf16 for graph in task.manifest.graphs):
        return "the bundle has no limits for bf16 on a CPU; export it again, with fp32"
    return None


def cannot_run_torch(task: Task, *, autocast: Precision | None = None) -> str | None:
    """Why PyTorch cannot run, in float32 or under autocast: float16 on GPUs, bfloat16 on CPUs."""
    if autocast is Precision.FP16 and task.device == "cpu":
        return "float16 autocast is for GPUs; on a CPU take the candidate without it"
    if autocast is Precision.BF16 and (reason := cannot_run_in_bf16(task)) is not None:
        return reason
    if (reason := lacks("torch")) is not None:
        return reason
    version = metadata.version("torch")
    if task.device == "cuda" and version.endswith("+cpu"):
        return f"torch {version} is built without CUDA; install a build of torch for CUDA"
    return None


def cannot_compile(task: Task, *, autocast: Precision | None) -> str | None:
    """Why torch.compile cannot run: it needs C++ for a CPU, Triton for a GPU."""
    if (reason := cannot_run_torch(task, autocast=autocast)) is not None:
        return reason
    if task.device == "cuda":
        return lacks("triton")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return (
            f"torch.compile needs a C++ compiler, and {compiler} is not on the PATH; "
            "install it, or name another one in the environment variable CXX"
        )
    return None


def cannot_run_transformers(task: Task, *, precision: Precision) -> str | None:
    """Why Hugging Face transformers cannot run."""
    needs_bf16 = precision is Precision.BF16
    reason = cannot_run_in_bf16(task) if needs_bf16 else None
    return reason or cannot_run_torch(task) or lacks("transformers")


def cannot_run_onnxruntime(task: Task) -> str | None:
    """Why a plain export in ONNX Runtime cannot run; any build of torch can write the file."""
    return lacks("torch", "onnx", "onnxscript") or ort.cannot_run(_device(task))


def cannot_run_openvino(task: Task, *, precision: Precision) -> str | None:
    """Why OpenVINO cannot run; it does not support NVIDIA GPUs."""
    if task.device != "cpu":
        return "OpenVINO does not run on NVIDIA GPUs; it is measured on the CPU alone"
    if precision is Precision.BF16 and (reason := cannot_run_in_bf16(task)) is not None:
        return reason
    return lacks("torch", "openvino")


def cannot_run_product(task: Task, *, backend: str, precision: Precision) -> str | None:
    """Why dinov2rt cannot run a graph or a plan of the bundle."""
    in_openvino = (Precision.FP32, Precision.BF16, Precision.INT8)
    if backend == "openvino" and (task.device != "cpu" or precision not in in_openvino):
        return "dinov2rt runs OpenVINO on the CPU alone, in fp32, bf16 and int8"
    if backend == "openvino" and precision is Precision.BF16:
        return cannot_run_in_bf16(task) or openvino.cannot_run_bf16()
    if precision is Precision.INT8 and backend != "openvino":
        return "int8 runs on the CPU alone, in OpenVINO"
    if backend == "tensorrt":
        return _cannot_run_plan(task, precision)
    if task.device == "cpu" and precision not in (Precision.FP32, Precision.INT8):
        return f"on a CPU the {precision} graph is for checking only; fp32 is faster there"
    if precision not in [graph.precision for graph in task.manifest.graphs]:
        return f"the bundle holds no {precision} graph; export it with --precision {precision}"
    if precision is Precision.INT8:
        return openvino.cannot_run_int8()
    return openvino.cannot_run() if backend == "openvino" else ort.cannot_run(_device(task))


def product_is_for(task: Task, *, backend: str, precision: Precision) -> bool:
    """Whether the bundle has, or should have, such a graph or plan for the device."""
    graphs = [graph.precision for graph in task.manifest.graphs]
    if backend == "tensorrt":
        plans = [plan.precision for plan in task.manifest.plans]
        return task.device == "cuda" and (precision in plans or precision is Precision.FP16)
    if backend == "openvino" and precision is Precision.BF16:
        return cannot_run_in_bf16(task) is None
    on_cpu = (Precision.FP32, Precision.INT8) if backend == "openvino" else (Precision.FP32,)
    on_gpu = () if backend == "openvino" else (Precision.FP32, Precision.FP16, Precision.BF16)
    return precision in graphs and precision in (on_cpu if task.device == "cpu" else on_gpu)


def _cannot_run_plan(task: Task, precision: Precision) -> str | None:
    if task.device == "cpu":
        return "plans run only on NVIDIA GPUs"
    if precision not in [plan.precision for plan in task.manifest.plans]:
        return (
            f"the bundle holds no {precision} plan; make one with: "
            f"dinov2rt build {task.bundle} --target sm80"
        )
    return None


def _device(task: Task) -> ort.Device:
    return "cpu" if task.device == "cpu" else "cuda"
