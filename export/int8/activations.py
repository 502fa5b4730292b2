"""Rounds the activations of int8 products, in one of two ways: see docs/adr/0009.

- Dynamic: at every call, symmetrically, with one scale for each group of channels of a token.
- Static: with a scale and a zero point for each channel, which are fixed at export. OpenVINO can
  fuse this rounding into the operation that computes the activations, so it is faster.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dinov2rt.export.int8.products import products, scaled_by_product
from dinov2rt.export.model import Dinov2
from dinov2rt.named_enum import NamedEnum
from dinov2rt.runtime.backends.openvino_program import INT8_GROUP

_LARGEST = 127
_LEVELS = 255
_LEAST_RANGE = 1e-6
"""The smallest scale of a channel, relative to the largest; a channel of zeros needs one, too."""

_HEADROOM = 1.1
"""Factor on ranges. Clipping other images is worse than steps a tenth larger: docs/adr/0009."""


class Activations(NamedEnum):
    """How the activations of a product are rounded."""

    STATIC = "static"
    DYNAMIC = "dynamic"


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Static rounding: `round(x / scale) + zero_point`, within 0..255, by channel.

    `scale` is float32 [in], `zero_point` uint8 [in]. Without a zero point the range is -128..127.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8] | None

    @classmethod
    def of(cls, tokens: Tensor) -> "Steps":
        """Steps for the range of each channel of `tokens` [N, in], extended to contain 0."""
        low = np.minimum(tokens.amin(0).numpy(), 0)
        scale = _scale(np.maximum(tokens.amax(0).numpy(), 0) - low, _LEVELS)
        return cls(scale, np.clip(np.rint(-low / scale), 0, _LEVELS).astype(np.uint8))

    @classmethod
    def symmetric(cls, tokens: Tensor) -> "Steps":
        """Steps for the largest magnitude of each channel of `tokens` [N, in]; no zero point."""
        return cls(_scale(tokens.abs().amax(0).numpy(), _LARGEST), None)

    def rounded(self, tokens: Tensor) -> Tensor:
        """`tokens` [..., in] after rounding."""
        scale, levels = (
            torch.from_numpy(self.scale),
            torch.round(tokens / torch.from_numpy(self.scale)),
        )
        if self.zero_point is None:
            return levels.clamp(-_LARGEST - 1, _LARGEST) * scale
        zero_point = torch.from_numpy(self.zero_point).float()
        return ((levels + zero_point).clamp(0, _LEVELS) - zero_point) * scale


@torch.inference_mode()
def static_steps(model: Dinov2, batches: Iterable[Tensor]) -> dict[str, Steps]:
    """Steps for each product, from the ranges of its activations on images, with some headroom.

    Each batch is float32 [B, 3, H, W]. Activations whose scale is folded into another product get
    no zero point, since that product cannot add one.
    """
    ranges: dict[str, Tensor] = {}
    names: dict[nn.Module, str] = {linear: name for name, linear in products(model).items()}

    def hook(linear: nn.Module, given: tuple[Tensor]) -> None:
        tokens, name = given[0].flatten(0, -2), names[linear]
        seen = torch.cat([tokens, ranges[name]]) if name in ranges else tokens
        ranges[name] = torch.stack([seen.amin(0), seen.amax(0)])

    with ExitStack() as hooks:
        for linear in names:
            hooks.callback(linear.register_forward_pre_hook(hook).remove)
        for images in batches:
            model.forward_features(images)
    of_product = scaled_by_product(model.architecture)
    return {
        name: (Steps.symmetric if name.rpartition(".")[2] in of_product else Steps.of)(
            _HEADROOM * ends
        )
        for name, ends in ranges.items()
    }


def _scale(widths: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    least = max(_LEAST_RANGE * float(widths.max()), float(np.finfo(np.float32).tiny) * levels)
    return (np.maximum(widths, least) / levels).astype(np.float32)


def rounded_in_groups(tokens: Tensor) -> Tensor:
    """`tokens` [..., in] after OpenVINO's dynamic rounding.

    Each group of `INT8_GROUP` channels of one token shares a scale, without a zero point. If the
    width is not a multiple of a group, the last group is smaller. Tokens narrower than a group are
    not rounded.
    """
    width = tokens.shape[-1]
    if width < INT8_GROUP:
        return tokens
    padded = torch.nn.functional.pad(tokens, (0, -width % INT8_GROUP))
    groups = padded.reshape(*padded.shape[:-1], -1, INT8_GROUP)
    scale = groups.abs().amax(-1, keepdim=True) / _LARGEST
    scale = scale.clamp(min=torch.finfo(tokens.dtype).tiny)
    return (torch.round(groups / scale) * scale).flatten(-2)[..., :width]
