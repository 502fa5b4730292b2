"""How much each product of a block would cost if it were int8: measured alone, in eager PyTorch.

What is measured is the rounding of activations. That of weights is made up for (`gptq.py`), and
does a sixth of their harm (docs/adr/0009).
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
    """All products, e.g. `blocks.3.qkv`, the one that int8 harms most for its size first.

    With one product at a time as int8, the rest of the model is computed on `images` float32
    [B, 3, H, W]. Its activations are rounded with its `steps`, or dynamically without.
    Harm is the final tokens' 1 - cos as a share of what is allowed, and what float32
    costs in its place is in proportion to the number of its weights.
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
    """The final tokens where `product`, of the block `index` that takes `tokens`, is int8."""
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
