"""The eager heads on the eager backbone: from images to the outputs of the graph."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dinov2rt.bundle.heads import Decoder, Task
from dinov2rt.bundle.signature import scores_name
from dinov2rt.export.heads.checkpoint import EagerHead
from dinov2rt.export.heads.eager import Level, Size, resize
from dinov2rt.export.heads.rounding import rounded
from dinov2rt.export.model import Dinov2


def pads_images(heads: Sequence[EagerHead]) -> bool:
    """Whether images are padded to whole patches, which dense heads need."""
    return any(head.spec.is_dense for head in heads)


def center_padded(images: Tensor, patch_size: int) -> Tensor:
    """Normalised images [B, 3, H, W] with zeros around them, up to multiples of the patch.

    Source: `CenterPadding` in `dinov2/hub/utils.py`; an odd pixel goes to the bottom or right.
    """
    pads: list[int] = []
    for side in (images.shape[3], images.shape[2]):
        lacking = -side % patch_size
        pads += [lacking // 2, lacking - lacking // 2]
    return functional.pad(images, pads)


def head_outputs(model: Dinov2, images: Tensor, size: Size) -> dict[str, np.ndarray]:
    """The arrays of `head_answers`."""
    answers = head_answers(model, images, size)
    return {name: value.numpy() for name, value in answers.items()}


def head_answers(model: Dinov2, images: Tensor, size: Size) -> dict[str, Tensor]:
    """The answers of every head of `model`, by output.

    Args:
        model: the backbone with its heads.
        images: normalised and, for dense heads, padded, [B, 3, H', W'].
        size: height and width of the images before that.
    """
    outputs: dict[str, Tensor] = {}
    for head, levels in head_levels(model, images):
        # Heads are float32 in the official evaluation, whatever the backbone is; DPT's decoder is
        # in half precision in a typed graph.
        with _half_decoder(head), torch.autocast(images.device.type, enabled=False):
            outputs |= _answer(head, levels, size)
    return outputs


def head_levels(model: Dinov2, images: Tensor) -> Iterator[tuple[EagerHead, list[Level]]]:
    """The heads of `model`, and what each of them reads; for `images` see `head_answers`."""
    heads: tuple[EagerHead, ...] = model.task_heads
    if not heads:
        return
    layers = sorted({layer for head in heads for layer in head.entry.layers})
    tokens = model.block_tokens(images, layers)
    side = model.architecture.patch_size
    grid = (images.shape[2] // side, images.shape[3] // side)
    for head in heads:
        with torch.autocast(images.device.type, enabled=False):
            levels = [_level(model, tokens[layer], head, grid) for layer in head.entry.layers]
        yield head, levels


def _half_decoder(head: EagerHead) -> AbstractContextManager[None]:
    """Under autocast, let a DPT head compute as half precision does."""
    if head.spec.decoder is not Decoder.DPT or not torch.is_autocast_enabled("cpu"):
        return nullcontext()
    return rounded(head.module, torch.get_autocast_dtype("cpu"))


def _level(model: Dinov2, tokens: Tensor, head: EagerHead, grid: Size) -> Level:
    if head.spec.task is not Task.DEPTH:  # depth heads read the stream as it is
        tokens = model.norm(tokens)
    patches = tokens[:, model.architecture.num_prefix_tokens :].transpose(1, 2)
    return Level(patches.reshape(*patches.shape[:2], *grid), tokens[:, 0])


def _answer(head: EagerHead, levels: list[Level], size: Size) -> dict[str, Tensor]:
    value, output = head.module(levels), head.entry.output
    if head.spec.task is Task.CLASSIFICATION:
        return {output: value}
    if head.spec.depth_range is not None:
        clamped = value.clamp(*head.spec.depth_range)
        return {output: resize(clamped[:, None], size)[:, 0]}
    classes = resize(value, size).argmax(dim=1).to(torch.uint8)
    return {output: classes, scores_name(output): value}
