"""Exact algebra that makes the heads cheaper, one named step each, on arrays.

1. A 1×1 convolution commutes with bilinear resampling, whose weights sum to one: it runs at the
   grid's size, and its result is resampled.
2. The class token is constant over an image: its part of a product is one vector for each image.
3. Batch norm in evaluation mode is a factor and a shift for each channel: they go into the
   convolution behind it.
4. A transposed convolution whose stride is its kernel is a 1×1 convolution and a pixel shuffle.
5. The decoding of bins is a quotient of two products: `Σ pᵢ bᵢ = Σ mᵢ bᵢ / Σ mᵢ`.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def split_levels(weight: Array, levels: int) -> list[tuple[Array, Array]]:
    """Parts of a weight [K, 2·D·levels] for patches and class token of each level, [D, K] each.

    With step 2, the second of each multiplies one class token an image.
    """
    parts = np.split(weight.reshape(len(weight), -1), 2 * levels, axis=1)
    transposed = [np.ascontiguousarray(part.T) for part in parts]
    return list(zip(transposed[::2], transposed[1::2], strict=True))


def fold_batch_norm(
    weight: Array, bias: Array, norm: tuple[Array, Array, Array, Array], epsilon: float
) -> tuple[Array, Array]:
    """Step 3: `W (γ (x - μ) / √(v + ε) + β) + b` as `W' x + b'`, computed in float64.

    Args:
        weight: of the convolution, [K, C].
        bias: of the convolution, [K].
        norm: γ, β, μ and v, [C] each.
        epsilon: ε.
    """
    gamma, beta, mean, variance = (each.astype(np.float64) for each in norm)
    scale = gamma / np.sqrt(variance + epsilon)
    exact = weight.astype(np.float64)
    shift = bias.astype(np.float64) + exact @ (beta - mean * scale)
    return (exact * scale).astype(np.float32), shift.astype(np.float32)


def shuffle_weight(weight: Array, bias: Array) -> tuple[Array, Array]:
    """Step 4: a transposed convolution [in, out, r, r] as a matrix [in, out·r·r] and its bias.

    The columns are ordered as ONNX's DepthToSpace takes them in mode CRD: channel, row, column.
    """
    inputs, _, rows, columns = weight.shape
    return weight.reshape(inputs, -1), np.repeat(bias, rows * columns)


def bin_weights(low: float, high: float, bins: int, least: float) -> tuple[Array, Array]:
    """Step 5: a matrix [bins, 2] and a shift [2] that make numerator and denominator of `relu(l)`.

    Both are of `m = relu(l) + least`; bins are uniform from `low` to `high`.
    """
    centres = low + (high - low) * np.arange(bins) / (bins - 1)
    matrix = np.stack((centres, np.ones(bins)), axis=1)
    return matrix.astype(np.float32), (least * matrix.sum(axis=0)).astype(np.float32)
