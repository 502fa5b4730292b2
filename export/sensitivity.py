"""How much each product of a block would cost if it were int8: measured alone, in eager PyTorch."""

import numpy as np
import torch
from torch import Tensor, nn

from dinov2rt.export.int8 import PRODUCTS, quantized
from dinov2rt.export.model import Dinov2
from dinov2rt.runtime.accuracy import INT8_CLS_COSINE, INT8_TOKEN_COSINE_P1
from dinov2rt.runtime.openvino import INT8_GROUP

_LARGEST = 127


@torch.inference_mode()
def rank(model: Dinov2, images: Tensor) -> tuple[str, ...]:
    """All products, e.g. `blocks.3.qkv`, the one that int8 harms most for its size first.

    With one product at a time as int8, the rest of the model is computed on `images` float32
    [B, 3, H, W]. Harm is the final tokens' 1 - cos as a share of what is allowed, and what float32
    costs in its place is in proportion to the number of its weights.
    """
    harm: dict[str, float] = {}
    levels = [model.prepare_tokens(images)]
    for block in model.blocks:
        levels.append(block(levels[-1]))
    want = model.norm(levels.pop())
    for index, level in enumerate(levels):
        for name, product in zip(PRODUCTS, _linears(model.blocks[index]), strict=True):
            got = _with_int8(product, model, index, level)
            harm[f"blocks.{index}.{name}"] = _harm(got, want) / product.weight.numel()
    return tuple(sorted(harm, key=harm.__getitem__, reverse=True))


def int8_product(tokens: Tensor, linear: nn.Linear) -> Tensor:
    """What OpenVINO computes of int8 weights: [B, N, in] to [B, N, out].

    Activations share a scale in groups of `INT8_GROUP` channels of one token, and weights in each
    output channel; both are symmetric.
    """
    groups = tokens.reshape(*tokens.shape[:-1], -1, INT8_GROUP)
    scale = groups.abs().amax(-1, keepdim=True) / _LARGEST
    scale = scale.clamp(min=torch.finfo(tokens.dtype).tiny)
    rounded = (torch.round(groups / scale) * scale).flatten(-2)
    integers, weight_scale = quantized(linear.weight.numpy().T)
    weight = torch.from_numpy(integers * weight_scale).T
    return nn.functional.linear(rounded, weight, linear.bias)


def _linears(block: nn.Module) -> list[nn.Linear]:
    return [part for part in block.modules() if isinstance(part, nn.Linear)]


def _with_int8(product: nn.Linear, model: Dinov2, index: int, tokens: Tensor) -> Tensor:
    """The final tokens where `product`, of the block `index` that takes `tokens`, is int8."""
    hook = product.register_forward_hook(lambda linear, given, _: int8_product(given[0], linear))
    try:
        for block in model.blocks[index:]:
            tokens = block(tokens)
    finally:
        hook.remove()
    normed: Tensor = model.norm(tokens)
    return normed


def _harm(got: Tensor, want: Tensor) -> float:
    lost = 1 - nn.functional.cosine_similarity(got.double(), want.double(), dim=-1)
    cls_token = float(lost[:, 0].mean()) / (1 - INT8_CLS_COSINE)
    others = float(np.percentile(lost[:, 1:].numpy(), 99)) / (1 - INT8_TOKEN_COSINE_P1)
    return max(cls_token, others)
