"""The tensors of a backbone, joined and shaped as the official state dict has them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.backbone.names import Naming
from dinov2rt.export.weights.backbone.search import Backbone
from dinov2rt.export.weights.state_dict import StateDict

_TOKENS = ("cls_token", "register_tokens", "pos_embed")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def assemble(
    tensors: Mapping[str, Tensor],
    backbone: Backbone,
    source: str,
    num_patches: int | None = None,
) -> StateDict:
    """The official state dict of `backbone`, whose tensors are in `tensors`.

    `cls_token` is [1, 1, D], `pos_embed` [1, 1 + patches, D] and `mask_token` [1, D], zeros where
    it is missing: inference does not use it. `num_patches` tells how many patches a table is for;
    None takes it to be square.

    Raises:
        WeightsError: a tensor is quantised or not dense, or the shapes do not belong together.
    """
    state = {
        name: _joined([_plain(tensors[raw], f"{source}: {raw}") for raw in parts], source, name)
        for name, parts in backbone.parts.items()
    }
    for name in _TOKENS:
        if name in state:
            state[name] = _with_batch(state[name], f"{source}: {name}")
    _set_mask_token(state)
    if backbone.naming is not Naming.TRANSFORMERS:
        _unpack_swiglu(state)
        _add_class_position(state, source, num_patches)
    return state


def _plain(tensor: Tensor, where: str) -> Tensor:
    is_dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not (is_dense and tensor.dtype in _FLOATS):
        raise WeightsError(
            f"{where} is {tensor.dtype} ({tensor.layout} on {tensor.device}), weights are dense "
            "floating-point tensors of 16, 32 or 64 bits; dequantise the checkpoint first"
        )
    return tensor.detach()


def _joined(parts: list[Tensor], source: str, name: str) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1 or not parts[0].ndim:
        raise WeightsError(
            f"{source} holds parts of {name} that differ in shape: "
            f"{', '.join(map(str, sorted(shapes)))}; give another checkpoint"
        )
    return torch.cat(parts)


def _with_batch(tokens: Tensor, where: str) -> Tensor:
    """[1, N, D], from [N, D] as well."""
    if tokens.ndim == 2:
        tokens = tokens[None]
    if tokens.ndim != 3 or tokens.shape[0] != 1:
        raise WeightsError(f"{where} is {tuple(tokens.shape)}, must be (1, tokens, width)")
    return tokens


def _set_mask_token(state: StateDict) -> None:
    width = state["cls_token"].shape[-1]
    mask_token = state.get("mask_token", torch.zeros(width))
    if mask_token.numel() == width:
        state["mask_token"] = mask_token.reshape(1, width)


def _unpack_swiglu(state: StateDict) -> None:
    """Name timm's packed SwiGLU as the official code does.

    timm calls its layers `fc1` and `fc2` too, but `fc1` has the rows of gate and value.
    """
    first, second = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
    if first is None or second is None or first.ndim != 2 or second.ndim != 2:
        return
    if first.shape[0] == 2 * second.shape[1]:
        for name in [name for name in state if ".mlp.fc" in name]:
            renamed = name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
            state[renamed] = state.pop(name)


def _add_class_position(state: StateDict, source: str, num_patches: int | None) -> None:
    """Give the position table the CLS token's row, which the official code has before the patches.

    timm has two more forms. With `no_embed_class`, the position of CLS is folded into `cls_token`:
    a row of zeros goes before the table, so that the sum is the same to the bit. Without, tables
    of models with registers have a row for each of these, which is added to the register.
    """
    table, registers = state["pos_embed"], state.get("register_tokens")
    rows, count = table.shape[1], 0 if registers is None else registers.shape[1]

    def is_grid(number: int) -> bool:
        return _is_square(number) if num_patches is None else number == num_patches

    if is_grid(rows - 1):
        return
    if is_grid(rows) and is_grid(rows - 1 - count):
        raise WeightsError(
            f"{source}: the {rows} rows of pos_embed can be read with and without rows for "
            f"{count} registers; give it in the official form, 1 + patches"
        )
    if is_grid(rows):
        state["pos_embed"] = torch.cat((torch.zeros_like(table[:, :1]), table), dim=1)
    elif registers is not None and is_grid(rows - 1 - count):
        state["register_tokens"] = registers + table[:, 1 : 1 + count]
        state["pos_embed"] = torch.cat((table[:, :1], table[:, 1 + count :]), dim=1)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
