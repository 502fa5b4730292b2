"""Ranks products by the error that int8 causes, one product at a time, in eager PyTorch.

Only activations are rounded. The rounding of weights, which `gptq.py` compensates, causes a sixth
of their error (docs/adr/0009).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dinov2rt.bundle.limits import INT8_CLS_COSINE, INT8_TOKEN_COSINE_P1
from dinov2rt.export.int8.activations import Steps, rounded_in_groups
from dinov2rt.export.int8.products import products
from dinov2rt.export.model import Dinov2


@torch.inference_mode()
def rank(model: Dinov2, images: Tensor, steps: Mapping[str, Steps] | None) -> tuple[str, ...]:
    """Rank all products, e.g. `blocks.3.qkv`, by harm per weight, the most harmful first.

    Harm is 1 - cos of the final tokens as a share of the limit, with the activations of this
    product alone rounded: with its `steps`, or dynamically if there are none. It is divided by the
    number of weights, because the time that int8 saves is proportional to it.

    Args:
        model: the eager model.
        images: float32 [B, 3, H, W].
        steps: the steps of static activations, by product; None for dynamic rounding.
    """
    levels = [model.prepare_tokens(images)]
    for block in model.blocks:
        levels.append(block(levels[-1]))
    want = model.norm(levels.pop())
    harm: dict[str, float] = {}
    for name, product in products(model).items():
        index = int(name.split(".")[1])
        got = _with_int8(product, steps[name] if steps else None, model, index, levels[index])
        harm[name] = _harm(got, want) / product.weight.numel()
    return tuple(sorted(harm, key=harm.__getitem__, reverse=True))


def _with_int8(
    product: nn.Linear, steps: Steps | None, model: Dinov2, index: int, tokens: Tensor
) -> Tensor:
    """The final tokens if `product` is int8; it is in block `index`, whose input is `tokens`."""
    rounded = rounded_in_groups if steps is None else steps.rounded
    hook = product.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))
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
