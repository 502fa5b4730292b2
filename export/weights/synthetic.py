"""Synthetic weights, recipe 2: a state dict from a seed, where no checkpoint can be had.

Its features mean nothing, but it strains an inference runtime as a trained model does: outputs
depend on the image and on the position table, attention is peaked, and two residual channels
carry massive activations of about ±300, whose squares overflow fp16.

Every tensor is drawn by itself, from the seed and its own name, and scaled in place, so that the
peak memory stays near one copy of the weights. Changing any of it changes all golden files.
"""

import math
import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid
from dinov2rt.export.weights.state_dict import StateDict, official_shapes

_Array = NDArray[np.float32]

_MASSIVE = 300.0
_WAVES = 4
"""Cosines along each side of the position table."""

_PATCH_NUMBERS = 588
"""The recipe scales by the numbers in a patch of the variants, also for other patch sizes."""

_LEARNED_TOKENS = ("cls_token", "register_tokens", "mask_token")
_NORMS = ("norm1", "norm2", "norm")


def synthetic_state_dict(architecture: Architecture, seed: int) -> StateDict:
    """All float32 tensors of `architecture`, the same on every machine for the same `seed`.

    Only `pos_embed` may differ by one unit in the last place, with the order of summation.
    """
    arrays: dict[str, _Array] = {}
    for key, shape in official_shapes(architecture).items():
        rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        if key == "pos_embed":
            arrays[key] = _position_table(rng, shape, architecture.native_grid)
        else:
            arrays[key] = _draw(rng, key, shape)
        if key.endswith(".gamma"):
            arrays[key] *= _depth_factor(architecture)
    _add_massive_activations(arrays, architecture)
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def _draw(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> _Array:
    """`mean + std · z`, rounded to float32 after each step; query and key rows times 1.5."""
    mean, std = _mean_and_std(key, shape)
    array = _normal(rng, shape)
    array *= np.float32(std)
    if key.endswith("attn.qkv.weight"):
        array[: 2 * shape[1]] *= np.float32(1.5)
    if mean:
        array += np.float32(mean)
    return array


def _depth_factor(architecture: Architecture) -> np.float32:
    """Smaller branches in deeper models, so that an error does not grow from block to block.

    1 for S and B; 0.62996 for L and 0.44814 for g. Recipe 1 had no such factor: there, one unit in
    the last place of the input changed the output of g by 6 %.
    """
    return np.float32(min(1.0, 12 / architecture.depth) ** (2 / 3))


def _mean_and_std(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if key in _LEARNED_TOKENS:
        return 0.0, 0.5
    *_, module, kind = key.split(".")
    if kind == "gamma":
        return 0.2, 0.05
    if kind == "bias":
        return 0.0, 0.1 if module in (*_NORMS, "qkv") else 0.02
    if module in _NORMS:
        return 1.0, 0.1
    inputs = _PATCH_NUMBERS if key == "patch_embed.proj.weight" else shape[1]
    return 0.0, 1 / math.sqrt(inputs)


def _position_table(rng: np.random.Generator, shape: tuple[int, ...], native: Grid) -> _Array:
    """A smooth field of cosines with a little noise, [1, 1 + R · C, D]; first the CLS row."""
    dim = shape[-1]
    head = _normal(rng, (dim,))
    coefficients = _normal(rng, (_WAVES, _WAVES, dim)).astype(np.float64)
    noise = _normal(rng, (native.rows, native.cols, dim)).astype(np.float64)
    down, across = _cosines(native.rows), _cosines(native.cols)
    grid = np.einsum("pqd,pr,qc->rcd", coefficients, down, across, optimize=True) / 4 + 0.05 * noise
    table = np.empty(shape, np.float32)
    table[0, 0] = np.float32(0.5) * head
    table[0, 1:] = grid.reshape(-1, dim)
    return table


def _cosines(side: int) -> NDArray[np.float64]:
    waves, cells = np.arange(_WAVES)[:, None], np.arange(side)
    return np.asarray(np.cos(np.pi * waves * (cells + 0.5) / side))


def _add_massive_activations(arrays: dict[str, _Array], architecture: Architecture) -> None:
    """Two channels of ±300 from a third of the depth on, and later norms that live with them."""
    dim, source = architecture.embed_dim, architecture.depth // 3
    channels = [dim // 7, 5 * dim // 11]
    projection = "fc2" if architecture.ffn == "mlp" else "w3"
    gamma = arrays[f"blocks.{source}.ls2.gamma"][channels] if architecture.layer_scale else 1
    bias = arrays[f"blocks.{source}.mlp.{projection}.bias"]
    bias[channels] = np.array([_MASSIVE, -_MASSIVE], np.float32) / gamma

    factor = np.full(dim, math.sqrt(1 + 2 * _MASSIVE**2 / dim), np.float32)
    factor[channels] = 0.02
    later = range(source + 1, architecture.depth)
    for name in ("norm", *(f"blocks.{i}.{norm}" for i in later for norm in ("norm1", "norm2"))):
        arrays[f"{name}.weight"] *= factor


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return rng.standard_normal(shape, dtype=np.float32)
