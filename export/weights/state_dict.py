"""The official state dict: its keys and shapes, and the check that weights have them."""

import hashlib
from collections.abc import Iterable

import torch

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.variants import name_of, variants
from dinov2rt.errors import WeightsError

StateDict = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]

_NAMED_KEYS = 3


def official_shapes(architecture: Architecture) -> Shapes:
    """Every key of the official checkpoint with its shape.

    Source: `DinoVisionTransformer` in `dinov2/models/vision_transformer.py`, as
    `dinov2/hub/backbones.py` builds it.
    """
    dim = architecture.embed_dim
    positions = 1 + architecture.native_grid.num_patches
    shapes: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, positions, dim)}
    if architecture.num_registers:
        shapes["register_tokens"] = (1, architecture.num_registers, dim)
    shapes["mask_token"] = (1, dim)
    shapes["patch_embed.proj.weight"] = (dim, 3, architecture.patch_size, architecture.patch_size)
    shapes["patch_embed.proj.bias"] = (dim,)
    block = _block_shapes(architecture)
    for index in range(architecture.depth):
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return shapes | _norm("norm", dim)


def check_state_dict(state: StateDict, architecture: Architecture, source: str) -> None:
    """Accept `state` only if it is, key for key, a state dict of `architecture`.

    Raises:
        WeightsError: keys are missing, unexpected or misshapen (the message names the architecture
            that does fit, if there is one), or a tensor is not floating-point or not finite.
            The message begins with `source`.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differences = _differences(found, official_shapes(architecture))
    if differences:
        raise WeightsError(
            f"{source} does not fit {name_of(architecture)}: {differences}; {_way_out(found)}"
        )
    for name, tensor in state.items():
        _check_values(tensor, f"{source}: {name}")


def to_float32(state: StateDict) -> StateDict:
    """The same weights as contiguous float32 tensors; exact from fp16 and bf16."""
    return {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in state.items()}


def state_dict_sha256(state: StateDict) -> str:
    """SHA-256, in hexadecimal, of contiguous float32 tensors: name, shape, bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].numpy().data)
    return digest.hexdigest()


def entries_below(state: StateDict, prefix: str) -> StateDict:
    """The entries under `prefix`, named without it; all of them where none has the prefix."""
    below = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    return below or state


def first_few(items: Iterable[str]) -> str:
    """The first three, and how many more there are."""
    everything = list(items)
    more = len(everything) - _NAMED_KEYS
    return ", ".join(everything[:_NAMED_KEYS]) + (f" and {more} more" if more > 0 else "")


def _block_shapes(architecture: Architecture) -> Shapes:
    dim, hidden = architecture.embed_dim, architecture.hidden_dim
    if architecture.ffn == "mlp":
        mlp = _linear("mlp.fc1", hidden, dim) | _linear("mlp.fc2", dim, hidden)
    else:
        mlp = _linear("mlp.w12", 2 * hidden, dim) | _linear("mlp.w3", dim, hidden)
    scales: list[Shapes] = [{f"ls{i}.gamma": (dim,)} for i in (1, 2) if architecture.layer_scale]
    attention = _linear("attn.qkv", 3 * dim, dim) | _linear("attn.proj", dim, dim)
    if not architecture.qkv_bias:
        del attention["attn.qkv.bias"]
    first, second = scales or [{}, {}]
    return _norm("norm1", dim) | attention | first | _norm("norm2", dim) | mlp | second


def _linear(name: str, rows: int, cols: int) -> Shapes:
    return {f"{name}.weight": (rows, cols), f"{name}.bias": (rows,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _differences(found: Shapes, expected: Shapes) -> str:
    misshapen = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    groups = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "misshapen": misshapen,
    }
    return "; ".join(f"{kind} {first_few(names)}" for kind, names in groups.items() if names)


def _way_out(found: Shapes) -> str:
    for variant in variants():
        if official_shapes(variant) == found:
            return f"it fits {variant.name}, so ask for that variant"
    return "it fits none of the eight variants; ask for auto, which reads the architecture from it"


def _check_values(tensor: torch.Tensor, where: str) -> None:
    is_dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not (is_dense and tensor.is_floating_point()):
        raise WeightsError(
            f"{where} is {tensor.dtype} ({tensor.layout} on {tensor.device}), weights are dense "
            "floating-point tensors; give a checkpoint that is not quantised"
        )
    # Judged in float32, the type it will have: a float64 value can overflow there.
    if not torch.isfinite(tensor.to(torch.float32)).all():
        raise WeightsError(
            f"{where} holds values that are not finite in float32; "
            "the checkpoint is damaged, get it again"
        )
