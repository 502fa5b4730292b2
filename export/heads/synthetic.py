"""Synthetic weights of heads: a state dict from a seed, where no checkpoint can be had.

As for the backbone, every tensor is drawn by itself, from the seed and its own name. Depth varies
over the image, bins are smooth, and the backbone's massive channels are damped as trained heads do.
Changing any of it changes all golden files.
"""

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.heads import HeadSpec
from dinov2rt.export.heads.eager import BINS

Array = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]

_DAMPING = np.float32(0.02)
_KNOT_SPACING = 32
_STEPS = 40_000


def synthetic_head(spec: HeadSpec, dim: int, shapes: Shapes, seed: int) -> dict[str, NDArray[Any]]:
    """All tensors of the head `spec` on a backbone of width `dim`, by their keys in a file."""
    return {key: _tensor(f"{spec.infix}/{key}", key, spec, dim, shapes, seed) for key in shapes}


def _tensor(
    name: str, key: str, spec: HeadSpec, dim: int, shapes: Shapes, seed: int
) -> NDArray[Any]:
    shape, leaf = shapes[key], key.removeprefix("decode_head.")
    if leaf == "bn.num_batches_tracked":
        return np.array(_STEPS, np.int64)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if leaf == "conv_depth.weight":
        return _bin_weights(rng, dim, shape)
    if leaf == "conv_depth.bias":
        return np.ascontiguousarray(_along_bins(rng, 1)[:, 0] * np.float32(0.5))
    value = _drawn(rng.standard_normal(shape, dtype=np.float32), leaf, spec, shape)
    if "readout_projects" in leaf and leaf.endswith("weight"):
        _damp(value, dim)
    if spec.name == "kitti-dpt" and "head.4" in leaf:
        value = value * np.float32(8)
    return np.ascontiguousarray(value, np.float32)


def _drawn(normal: Array, leaf: str, spec: HeadSpec, shape: tuple[int, ...]) -> Array:
    """`normal`, scaled as its place asks, rounded to float32 after each step."""
    if leaf == "bn.running_var":
        return np.float32(1) + normal * normal
    mean, std = _mean_and_std(leaf, spec, shape)
    if mean:
        return np.float32(mean) + np.float32(std) * normal
    return normal * np.float32(std)


def _mean_and_std(leaf: str, spec: HeadSpec, shape: tuple[int, ...]) -> tuple[float, float]:
    fan_in = math.prod(shape[1:])
    if leaf in _BY_LEAF:
        return _BY_LEAF[leaf]
    if spec.name in ("linear", "linear4"):
        return (0, 2 / math.sqrt(fan_in)) if leaf == "weight" else (0, 0.5)
    if leaf.endswith("bias"):
        return 0, 0.1
    if "resize_layers.0" in leaf or "resize_layers.1" in leaf:  # transposed: [in, out, 4, 4]
        return 0, 1 / math.sqrt(shape[0])
    return 0, _gain(leaf) / math.sqrt(fan_in)


_BY_LEAF: dict[str, tuple[float, float]] = {
    "bn.weight": (1, 0.2),
    "bn.bias": (0, 0.2),
    "bn.running_mean": (0, 0.5),
    "conv_seg.bias": (0, 0.2),
    "conv_depth.head.4.bias": (3, 0.1),
}


def _gain(leaf: str) -> float:
    if leaf == "conv_seg.weight":
        return 1.5
    if leaf == "conv_depth.head.4.weight":
        return 1.6
    is_projection = "reassemble_blocks.projects." in leaf
    return math.sqrt(2) if is_projection or leaf == "conv_depth.head.0.weight" else 1.0


def _bin_weights(rng: np.random.Generator, dim: int, shape: tuple[int, ...]) -> Array:
    channels = shape[1]
    weight = _along_bins(rng, channels) * np.float32(1.5 / math.sqrt(channels))
    _damp(weight, dim)
    return np.ascontiguousarray(weight.reshape(shape), np.float32)


def _along_bins(rng: np.random.Generator, width: int) -> Array:
    """[256, width]: straight lines between nine random rows, and a little noise."""
    knots = rng.standard_normal((BINS // _KNOT_SPACING + 1, width), dtype=np.float32)
    noise = rng.standard_normal((BINS, width), dtype=np.float32)
    bins = np.arange(BINS)
    knot, part = bins // _KNOT_SPACING, ((bins % _KNOT_SPACING) / _KNOT_SPACING)[:, None]
    share = part.astype(np.float32)
    lines: Array = knots[knot] * (np.float32(1) - share) + knots[knot + 1] * share
    return lines + np.float32(0.1) * noise


def _damp(weight: Array, dim: int) -> None:
    """Make little of the backbone's massive channels, in every `dim` columns."""
    for start in range(0, weight.shape[1], dim):
        weight[:, [start + dim // 7, start + 5 * dim // 11]] *= _DAMPING
