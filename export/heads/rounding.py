"""A head as half precision computes it, in float32 kernels: what autocast rounds is rounded.

On a CPU, torch's half kernels for convolutions take minutes, and its float32 kernels seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PRODUCTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@contextmanager
def rounded(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let products of `module` take and return values of `dtype`, with weights rounded to it.

    Sums of two results, as in residual units, are rounded as well.
    """

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_round(each, dtype) for each in inputs)

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return _round(output, dtype)

    products = [each for each in module.modules() if isinstance(each, _PRODUCTS)]
    parts = [each for each in module.modules() if each is not module]
    exact = [(parameter, parameter.data) for each in products for parameter in each.parameters()]
    handles = [each.register_forward_pre_hook(before) for each in products]
    handles += [each.register_forward_hook(after) for each in parts]
    try:
        for parameter, value in exact:
            parameter.data = _round(value, dtype)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, value in exact:
            parameter.data = value


def _round(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(dtype).to(torch.float32) if is_float else value
