"""A second implementation of DINOv2, in float64 loops of numpy: slow, and without torch.

It shares no code with the product. `facts` is anything with the fields of an architecture.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, Array]

LIMIT = 1e-5


def tokens(facts: Any, state: State, pixels: NDArray[np.uint8]) -> dict[str, Array]:
    """CLS [B, D], register [B, R, D] and patch tokens [B, h·w, D] of `pixels` [B, H, W, 3]."""
    every = np.stack([_one_image(facts, state, image) for image in pixels])
    first = 1 + facts.num_registers
    found = {"cls_token": every[:, 0], "patch_tokens": every[:, first:]}
    return found | ({"register_tokens": every[:, 1:first]} if first > 1 else {})


def assert_same(
    found: Mapping[str, NDArray[Any]], facts: Any, state: State, pixels: NDArray[np.uint8]
) -> None:
    """Check that `found` has the tokens of `pixels`, each output within 1e-5 (relative L2)."""
    want = tokens(facts, state, pixels)
    assert set(found) == set(want)
    for name, expected in want.items():
        assert relative_l2(found[name], expected) < LIMIT, (pixels.shape, name)


def in_float64(state: Mapping[str, Any]) -> State:
    """A torch state dict as this module takes it."""
    return {name: tensor.double().numpy() for name, tensor in state.items()}


def relative_l2(found: NDArray[Any], want: Array) -> float:
    """The distance of `found` from `want`, as a share of `want`."""
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))


def _one_image(facts: Any, state: State, image: NDArray[np.uint8]) -> Array:
    mean, std = (np.array(values) for values in (facts.normalization.mean, facts.normalization.std))
    normalized = (image / 255.0 - mean) / std
    side = facts.patch_size
    rows, cols = image.shape[0] // side, image.shape[1] // side
    kernel = state["patch_embed.proj.weight"]
    patches = [
        np.einsum(
            "yxc,dcyx->d", normalized[r * side : (r + 1) * side, c * side : (c + 1) * side], kernel
        )
        for r in range(rows)
        for c in range(cols)
    ]
    positions = state["pos_embed"][0]
    native = (facts.native_grid.rows, facts.native_grid.cols)
    table = positions[1:].reshape(*native, -1)
    if (rows, cols) != native:
        table = resampled(table, (rows, cols), facts.antialias, facts.offset)
    lines = [state["cls_token"].reshape(1, -1) + positions[:1]]
    if facts.num_registers:
        lines.append(state["register_tokens"].reshape(facts.num_registers, -1))
    embedded = np.array(patches) + state["patch_embed.proj.bias"]
    lines.append(embedded + table.reshape(rows * cols, -1))
    stream = np.concatenate(lines)
    for index in range(facts.depth):
        stream = _block(facts, _below(state, f"blocks.{index}."), stream)
    return _norm(stream, state["norm.weight"], state["norm.bias"])


def _below(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _block(facts: Any, state: State, stream: Array) -> Array:
    given = _norm(stream, state["norm1.weight"], state["norm1.bias"])
    stream = stream + state.get("ls1.gamma", 1.0) * _attention(facts.num_heads, state, given)
    given = _norm(stream, state["norm2.weight"], state["norm2.bias"])
    branch = _gated(state, given) if facts.ffn == "swiglu" else _mlp(state, given)
    return stream + state.get("ls2.gamma", 1.0) * branch


def _attention(heads: int, state: State, given: Array) -> Array:
    width = given.shape[1]
    wide = width // heads
    together = given @ state["attn.qkv.weight"].T + state.get("attn.qkv.bias", 0.0)
    mixed = np.empty_like(given)
    for head in range(heads):
        part = slice(head * wide, (head + 1) * wide)
        query, key, value = (together[:, n * width : (n + 1) * width][:, part] for n in range(3))
        scores = query @ key.T / math.sqrt(wide)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed[:, part] = weights @ value / weights.sum(axis=1, keepdims=True)
    return mixed @ state["attn.proj.weight"].T + state["attn.proj.bias"]


def _mlp(state: State, given: Array) -> Array:
    wide = given @ state["mlp.fc1.weight"].T + state["mlp.fc1.bias"]
    erf = np.vectorize(math.erf)
    active = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
    return active @ state["mlp.fc2.weight"].T + state["mlp.fc2.bias"]


def _gated(state: State, given: Array) -> Array:
    both = given @ state["mlp.w12.weight"].T + state["mlp.w12.bias"]
    gate, up = np.split(both, 2, axis=1)
    active = gate / (1 + np.exp(-gate)) * up
    return active @ state["mlp.w3.weight"].T + state["mlp.w3.bias"]


def _norm(stream: Array, weight: Array, bias: Array) -> Array:
    centred = stream - stream.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1, keepdims=True)
    return centred / np.sqrt(variance + 1e-6) * weight + bias


def resampled(table: Array, grid: tuple[int, int], antialias: bool, offset: float) -> Array:
    """`table` [h, w, D] for another grid, as `torch.nn.functional.interpolate` does it, bicubic.

    With an offset the scale is (grid + offset) / native, and without one grid / native.
    """
    matrices = [
        _weights(native, wanted, native / (wanted + offset), antialias)
        for native, wanted in zip(table.shape[:2], grid, strict=True)
    ]
    return np.einsum("rp,pqd,cq->rcd", matrices[0], table, matrices[1])


def _weights(native: int, wanted: int, step: float, antialias: bool) -> Array:
    """One axis [wanted, native]. Antialiased, an axis that keeps its length is copied."""
    if antialias and native == wanted:
        return np.eye(native)
    matrix = np.zeros((wanted, native))
    for index in range(wanted):
        place = step * (index + 0.5) - 0.5
        if antialias:
            _add_antialiased(matrix[index], place, max(step, 1.0))
        else:
            _add_cubic(matrix[index], place)
    return matrix


def _add_cubic(row: Array, place: float) -> None:
    """Four taps of the kernel with a = -0.75; beyond the border, the border is repeated."""
    first = math.floor(place) - 1
    for tap in range(first, first + 4):
        row[min(max(tap, 0), len(row) - 1)] += _cubic(abs(place - tap), -0.75)


def _add_antialiased(row: Array, place: float, stretch: float) -> None:
    """The kernel with a = -0.5, as wide as `stretch` says, over the taps inside, of sum 1."""
    taps = np.arange(len(row))
    values = np.array([_cubic(abs(place - tap) / stretch, -0.5) for tap in taps])
    row += values / values.sum()


def _cubic(x: float, a: float) -> float:
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0
