"""Counts the work of one call of a backbone; bounds its time by the machine's measured rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from dinov2rt.benchmarks.results import Cell, Roofline
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import InputError

_CHANNELS = 3
_BYTES = {Precision.FP32: 4, Precision.FP16: 2, Precision.BF16: 2}
_OUTPUT_BYTES = 4


@dataclass(frozen=True, slots=True)
class HeadWork:
    """The part of heads in the work of a call.

    `size` is the size of the images as the backbone sees them, with padding; `flops` counts the
    products and convolutions for the whole batch, and `output_bytes` the bytes of all answers.
    """

    size: ImageSize
    flops: int
    output_bytes: int


def flops(architecture: Architecture, batch: int, size: ImageSize) -> int:
    """Floating-point operations of `batch` images, 2 for each multiply-add of a matrix product.

    With P patches, N = 1 + R + P tokens, width D and hidden width H, an image takes

        patch embedding   2 · P · (3 · patch²) · D
        each block        2 · N · D · 3D          query, key and value
                        + 2 · 2 · N² · D          query times key, weights times value
                        + 2 · N · D · D           projection
                        + 2 · 2 · N · D · H       MLP, or 3 · 2 · N · D · H for SwiGLU

    Norms, softmax, activations and the resampling of the position table are left out: below one
    percent, and no matrix products.
    """
    patches, dim = size.grid(architecture.patch_size).num_patches, architecture.embed_dim
    tokens = architecture.num_prefix_tokens + patches
    embedding = 2 * patches * _CHANNELS * architecture.patch_size**2 * dim
    projections = 2 * tokens * dim * 4 * dim
    feed_forward = 2 * _ffn_products(architecture) * tokens * dim * architecture.hidden_dim
    linear = batch * (embedding + architecture.depth * (projections + feed_forward))
    return linear + quadratic_flops(architecture, batch, size)


def quadratic_flops(architecture: Architecture, batch: int, size: ImageSize) -> int:
    """The part of `flops` that grows with the square of the tokens: attention's two products."""
    tokens = architecture.num_prefix_tokens + size.grid(architecture.patch_size).num_patches
    return batch * architecture.depth * 4 * tokens**2 * architecture.embed_dim


def min_bytes(
    architecture: Architecture,
    batch: int,
    size: ImageSize,
    precision: Precision,
    output_bytes: int,
) -> int:
    """Bytes that cross the memory bus at least, if everything else stays in a cache.

    Weights once, in `precision`; images as uint8, which is their smallest form; and the outputs
    once, `output_bytes`. The weights of heads are left out.
    """
    images = batch * size.pixels * _CHANNELS
    return num_weights(architecture) * _BYTES[precision] + images + output_bytes


def tokens_bytes(architecture: Architecture, batch: int, size: ImageSize) -> int:
    """Bytes of all tokens after the final norm, in float32."""
    tokens = architecture.num_prefix_tokens + size.grid(architecture.patch_size).num_patches
    return batch * tokens * architecture.embed_dim * _OUTPUT_BYTES


def num_weights(architecture: Architecture) -> int:
    """Numbers in the weights that a forward pass reads: all but the mask token."""
    dim, hidden = architecture.embed_dim, architecture.hidden_dim
    embedding = (_CHANNELS * architecture.patch_size**2 + 1) * dim
    prefix_and_positions = (
        architecture.num_prefix_tokens + 1 + architecture.native_grid.num_patches
    ) * dim
    gates = _ffn_products(architecture) - 1  # layers that widen; one narrows again
    feed_forward = gates * (dim + 1) * hidden + (hidden + 1) * dim
    attention = (dim + 1) * 4 * dim
    attention -= 0 if architecture.qkv_bias else 3 * dim
    norms_and_scales = (6 if architecture.layer_scale else 4) * dim
    block = attention + feed_forward + norms_and_scales
    return embedding + prefix_and_positions + architecture.depth * block + 2 * dim


def roofline(
    architecture: Architecture,
    cell: Cell,
    precision: Precision,
    *,
    turns_ms: Sequence[float],
    matrix_gflops: Sequence[float],
    copy_gb_per_s: float,
    heads: HeadWork | None = None,
) -> Roofline:
    """The least time of a call at `cell` whose turns took `turns_ms`; see `Roofline`.

    `matrix_gflops` is the rate of the machine in each of these turns. With `heads`, the call ends
    at their answers and not at the tokens.

    Raises:
        InputError: there are not as many rates as turns.
    """
    if len(turns_ms) != len(matrix_gflops):
        raise InputError(
            f"{len(turns_ms)} turns beside {len(matrix_gflops)} of the matrix product; they come "
            "in pairs; measure again"
        )
    heads = heads or HeadWork(cell.size, 0, tokens_bytes(architecture, cell.batch, cell.size))
    gflop = (flops(architecture, cell.batch, heads.size) + heads.flops) / 1e9
    gbyte = min_bytes(architecture, cell.batch, cell.size, precision, heads.output_bytes) / 1e9
    copying_ms = 1e3 * gbyte / copy_gb_per_s
    computing_ms = [1e3 * gflop / rate for rate in matrix_gflops]
    least_ms = [max(copying_ms, each) for each in computing_ms]
    shares = [least / turn for least, turn in zip(least_ms, turns_ms, strict=True)]
    return Roofline(
        gflop=gflop,
        gbyte=gbyte,
        matrix_gflops=median(matrix_gflops),
        least_ms=median(least_ms),
        bound="bandwidth" if copying_ms > median(computing_ms) else "compute",
        fraction=median(shares),
    )


def _ffn_products(architecture: Architecture) -> int:
    return 3 if architecture.ffn == "swiglu" else 2
