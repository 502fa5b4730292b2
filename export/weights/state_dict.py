"""The official state dict: its keys and shapes, and the check that weights have them."""

import hashlib
from collections.abc import Iterable

import torch

from dinov2rt.bundle.variants import NATIVE_GRID, PATCH_SIZE, Variant, variants
from dinov2rt.errors import WeightsError

StateDict = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]

_NAMED_KEYS = 3


def official_shapes(variant: Variant) -> Shapes:
    """Every key of the official checkpoint with its shape.

    Source: `DinoVisionTransformer` in `dinov2/models/vision_transformer.py`, as
    `dinov2/hub/backbones.py` builds it.
    """
    dim = variant.embed_dim
    shapes: Shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + NATIVE_GRID**2, dim)}
    if variant.num_registers:
        shapes["register_tokens"] = (1, variant.num_registers, dim)
    shapes["mask_token"] = (1, dim)
    shapes["patch_embed.proj.weight"] = (dim, 3, PATCH_SIZE, PATCH_SIZE)
    shapes["patch_embed.proj.bias"] = (dim,)
    block = _block_shapes(variant)
    for index in range(variant.depth):
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return shapes | _norm("norm", dim)


def check_state_dict(state: StateDict, variant: Variant, source: str) -> None:
    """Accept `state` only if it is, key for key, a state dict of `variant`.

    Raises:
        WeightsError: keys are missing, unexpected or misshapen (the message names the variant
            that does fit, if there is one), or a tensor is not floating-point or not finite.
            The message begins with `source`.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differences = _differences(found, official_shapes(variant))
    if differences:
        raise WeightsError(
            f"{source} does not fit {variant.name}: {differences}; {_way_out(found)}"
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


def _block_shapes(variant: Variant) -> Shapes:
    dim, hidden = variant.embed_dim, variant.hidden_dim
    if variant.ffn == "mlp":
        mlp = _linear("mlp.fc1", hidden, dim) | _linear("mlp.fc2", dim, hidden)
    else:
        mlp = _linear("mlp.w12", 2 * hidden, dim) | _linear("mlp.w3", dim, hidden)
    return {
        **_norm("norm1", dim),
        **_linear("attn.qkv", 3 * dim, dim),
        **_linear("attn.proj", dim, dim),
        "ls1.gamma": (dim,),
        **_norm("norm2", dim),
        **mlp,
        "ls2.gamma": (dim,),
    }


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
    return "it fits none of the eight variants; give a checkpoint of a DINOv2 backbone"


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
