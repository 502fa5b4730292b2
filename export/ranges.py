"""Records how large the activations get that a typed graph stores in half precision.

They are measured while the eager float32 model computes the golden outputs of real photographs: at
every tensor that the graph of `typed.py` stores in half, and in the residual stream (float32).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dinov2rt.errors import ExportError
from dinov2rt.export.model import Dinov2
from dinov2rt.export.typed import FLOAT16_MAX, WAY_OUT

Ranges = dict[str, float]
"""The largest |activation| by tensor, e.g. `blocks.3.down`."""

_Reading = Callable[[Any, Tensor, Tensor], Tensor]
"""Returns the tensor to measure, given a module, its input and its output."""


@contextmanager
def record_ranges(model: Dinov2) -> Iterator[Ranges]:
    """Record the largest |activation| of each tensor of `model` while the block runs.

    Yields:
        The maxima by name: `patch_embed`, `norm`, and for each block `blocks.N.` with `norm1`,
        `qkv`, `attention`, `proj`, `norm2`, `up`, `activation`, `down`, `residual`. `proj` and
        `down` are without their bias, which the graph adds in float32.
    """
    ranges: Ranges = {}
    with ExitStack() as hooks:
        for name, module, reading in _places(model):
            hook = _hook(ranges, name, reading)
            hooks.callback(module.register_forward_hook(hook).remove)
        yield ranges


def worst(ranges: Mapping[str, float]) -> tuple[str, float]:
    """Name and value of the largest activation that is stored in half precision.

    Raises:
        ExportError: the value overflows float16.
    """
    stored = {name: value for name, value in ranges.items() if not name.endswith(".residual")}
    # Treat NaN as the maximum.
    name = max(stored, key=lambda key: (stored[key] != stored[key], stored[key]))
    if not stored[name] <= FLOAT16_MAX:
        raise ExportError(
            f"{name} reaches {stored[name]:.4g}, float16 ends at {FLOAT16_MAX:.0f}; {WAY_OUT}"
        )
    return name, stored[name]


def _places(model: Dinov2) -> Iterator[tuple[str, nn.Module, _Reading]]:
    yield "patch_embed", model.patch_embed.proj, _sums
    for index, block in enumerate(model.blocks):
        qkv, proj, up, down = (part for part in block.modules() if isinstance(part, nn.Linear))
        places: tuple[tuple[str, Any, _Reading], ...] = (
            ("norm1", block.norm1, _output),
            ("qkv", qkv, _sums),
            ("attention", proj, _input),
            ("proj", proj, _product),
            ("norm2", block.norm2, _output),
            ("up", up, _sums),
            ("activation", down, _input),
            ("down", down, _product),
            ("residual", block, _output),
        )
        yield from ((f"blocks.{index}.{name}", module, reading) for name, module, reading in places)
    yield "norm", model.norm, _output


def _hook(ranges: Ranges, name: str, reading: _Reading) -> Callable[..., None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        largest = float(reading(module, inputs[0], output).abs().max())
        # In this order of arguments, max() returns a NaN.
        ranges[name] = max(largest, ranges.get(name, 0.0))

    return record


def _input(_module: nn.Module, given: Tensor, _made: Tensor) -> Tensor:
    return given


def _output(_module: nn.Module, _given: Tensor, made: Tensor) -> Tensor:
    return made


def _product(module: Any, _given: Tensor, made: Tensor) -> Tensor:
    product: Tensor = made if module.bias is None else made - module.bias
    return product


def _sums(module: Any, _given: Tensor, made: Tensor) -> Tensor:
    """The product without and with its bias: the graph stores both."""
    if module.bias is None:
        return made
    bias = module.bias if made.dim() == 3 else module.bias.reshape(-1, 1, 1)
    return torch.maximum(made.abs(), (made - bias).abs())
