"""PyTorch as its users run it: eager, compiled, and the model of transformers.

Their `load_ms` includes drawing and hashing the bundle's weights, which takes longer for synthetic
weights than reading a file.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import BackendError
from dinov2rt.export.eager_check import heads_of, weights_of
from dinov2rt.export.heads.answers import center_padded, head_answers, pads_images
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.runtime.gpu.phases import Phases

_SHAPES_AT_MOST = 64
"""Shapes that one process may compile for; dynamo's own limit of 8 is too low for all cells."""

_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}

Outputs = tuple[Tensor, ...]


class AllTokens(nn.Module):
    """The eager model with the outputs of a bundle, in the same order."""

    def __init__(self, model: Dinov2) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Outputs:
        """[B, 3, H, W] to CLS [B, D], registers [B, R, D] (if any), and patches [B, P, D].

        The final norm is applied.
        """
        features = self.model.forward_features(images)
        registers = (features["x_norm_regtokens"],) if self.model.architecture.num_registers else ()
        return features["x_norm_clstoken"], *registers, features["x_norm_patchtokens"]


class AllAnswers(nn.Module):
    """The eager model with the outputs of a bundle that has heads, in the order of `names`."""

    def __init__(self, model: Dinov2, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model: Dinov2 = model
        self.names: tuple[str, ...] = names
        self.heads: nn.ModuleList = nn.ModuleList(head.module for head in model.task_heads)

    def forward(self, images: Tensor) -> Outputs:
        """[B, 3, H, W] to logits, depth, and classes of pixels with their scores."""
        size = (images.shape[2], images.shape[3])
        if pads_images(self.model.task_heads):
            images = center_padded(images, self.model.architecture.patch_size)
        answers = head_answers(self.model, images, size)
        return tuple(answers[name] for name in self.names)


@dataclass(slots=True, eq=False)
class TorchRunner:
    """Calls `forward`, from images [B, 3, H, W] to the outputs `names`, in inference mode.

    The images come from host memory, and the outputs return to it.
    """

    version: str
    device: str
    names: tuple[str, ...]
    forward: Callable[[Tensor], Outputs]
    autocast: torch.dtype | None
    normalization: Normalization = IMAGENET

    def prepare(self, pixels: NDArray[np.uint8]) -> Tensor:
        """The normalized tensor, float32 [B, 3, H, W], in host memory."""
        return torch.from_numpy(self.normalization(pixels))

    def run(self, prepared: Tensor) -> Outputs:
        """All tokens, in host memory."""
        with self._mode():
            tokens = self.forward(prepared.to(self.device))
            return tuple(value.cpu() for value in tokens)

    def phases(self, prepared: Tensor) -> Phases | None:
        """The phases of one call; None on a CPU."""
        if self.device == "cpu":
            return None
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]  # type: ignore[no-untyped-call]
        with self._mode():
            marks[0].record()
            images = prepared.to(self.device)
            marks[1].record()
            tokens = self.forward(images)
            marks[2].record()
            for value in tokens:
                value.cpu()
            marks[3].record()
        marks[3].synchronize()
        return Phases(*(before.elapsed_time(after) for before, after in pairwise(marks)))

    def outputs(self, result: Outputs) -> Mapping[str, NDArray[np.float32]]:
        """The outputs by name, float32; classes of pixels are uint8."""
        kept = (value if value.dtype == torch.uint8 else value.float() for value in result)
        values = (value.numpy() for value in kept)
        return dict(zip(self.names, values, strict=True))

    def close(self) -> None:
        """Do nothing; the process ends afterwards."""

    def _mode(self) -> ExitStack:
        """The context of every call: inference mode, and autocast if requested."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        if self.autocast is not None:
            stack.enter_context(torch.autocast(self.device, self.autocast))
        return stack


def open_eager(workload: Workload, *, autocast: Precision | None) -> TorchRunner:
    """The eager model, float32 or under autocast."""
    return _runner(workload, load_outputs(workload).to(_device(workload)), autocast=autocast)


def open_compiled(workload: Workload, *, mode: str, autocast: Precision | None) -> TorchRunner:
    """The eager model through torch.compile, compiled anew for each shape.

    If compilation fails, also by a graph break or by too many shapes, the call fails; by default,
    dynamo would silently run such parts eagerly.
    """
    torch.compiler.config.recompile_limit = _SHAPES_AT_MOST
    torch.compiler.config.fail_on_recompile_limit_hit = True
    module = load_outputs(workload).to(_device(workload))
    compiled = torch.compile(module, mode=mode, dynamic=False, fullgraph=True)
    return _runner(workload, compiled, autocast=autocast)


def open_transformers(workload: Workload, *, precision: Precision) -> TorchRunner:
    """The model of transformers, with its own resampling of the position table.

    All of it is in `precision`, as after `from_pretrained(..., dtype=...)`.
    """
    import transformers

    if workload.manifest.heads:
        return _open_transformers_head(workload, precision=precision)
    from dinov2rt.benchmarks.peers.transformers import huggingface_model

    architecture, dtype = workload.manifest.architecture, _DTYPES[precision]
    model = huggingface_model(architecture, weights_of(workload.manifest).state_dict)
    model = model.to(_device(workload), dtype)

    def forward(images: Tensor) -> Outputs:
        tokens = model(pixel_values=images.to(dtype)).last_hidden_state
        first_patch = architecture.num_prefix_tokens
        registers = (tokens[:, 1:first_patch],) if architecture.num_registers else ()
        return tokens[:, 0], *registers, tokens[:, first_patch:]

    runner = _runner(workload, forward, autocast=None)
    runner.version = f"transformers {transformers.__version__}, {runner.version}"
    return runner


def _open_transformers_head(workload: Workload, *, precision: Precision) -> TorchRunner:
    """The model of transformers for the bundle's only head."""
    import transformers

    from dinov2rt.benchmarks.peers.transformers_heads import HuggingFaceHead

    manifest, dtype = workload.manifest, _DTYPES[precision]
    (head,) = heads_of(manifest)
    model = HuggingFaceHead(manifest.architecture, weights_of(manifest).state_dict, head)
    model = model.to(_device(workload), dtype)
    runner = _runner(workload, lambda images: model(images.to(dtype)), autocast=None)
    name = type(model.model).__name__
    runner.version = f"{name} of transformers {transformers.__version__}, {runner.version}"
    return runner


def load_outputs(workload: Workload) -> nn.Module:
    """The eager model with the outputs `Workload.outputs` of the bundle, on the CPU."""
    manifest = workload.manifest
    if not manifest.heads:
        return load_all_tokens(manifest)
    model = load_eager(manifest.architecture, weights_of(manifest).state_dict)
    model.task_heads = heads_of(manifest)
    return AllAnswers(model, workload.outputs).eval()


def load_all_tokens(manifest: Manifest) -> AllTokens:
    """The eager model with the weights of the bundle, on the CPU."""
    return AllTokens(load_eager(manifest.architecture, weights_of(manifest).state_dict)).eval()


def _runner(
    workload: Workload, forward: Callable[[Tensor], Any], *, autocast: Precision | None
) -> TorchRunner:
    torch.set_num_threads(workload.threads)
    # A float32 row must compute in float32, but on a GPU convolutions are TF32 by default. These
    # are the older switches: torch.compile reads them, and fails after the newer ones.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return TorchRunner(
        version=f"torch {torch.__version__}",
        device=workload.device,
        names=workload.outputs,
        forward=forward,
        autocast=None if autocast is None else _DTYPES[autocast],
        normalization=workload.manifest.normalization,
    )


def _device(workload: Workload) -> str:
    if workload.device == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"torch {torch.__version__} finds no CUDA device; install a CUDA build of torch "
            'on a machine with an NVIDIA GPU, or use device="cpu"'
        )
    return workload.device
