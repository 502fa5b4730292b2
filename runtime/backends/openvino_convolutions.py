"""Writes products of tokens and a matrix as convolutions, for known shapes: see docs/adr/0018."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends.openvino_products import (
    has_large_matrix,
    products_with_bias,
    readers,
)
from dinov2rt.runtime.cpu import this_cpu

INT8_TOKENS = 1200
"""Products of bytes are faster as convolutions for batches of up to so many tokens."""

Kernels = dict[str, NDArray[Any]]
"""Kernels [D, K, 1] by the name of their matrix."""

_EXCHANGED = np.array([0, 2, 1])
_DEQUANTIZES = ("Multiply", "Subtract", "Convert")


def are_convolutions_faster(model: Any, precision: Precision) -> bool:
    """Whether OpenVINO computes products of `model` faster as convolutions, on this CPU.

    It does in bfloat16. In float32 it takes the same kernel for both, unless a matrix is large.
    CPUs with AMX were not measured.
    """
    cpu = this_cpu()
    if cpu.multiplies_bf16_tiles or "AVX-512" not in cpu.instruction_sets:
        return False
    return precision is Precision.BF16 or has_large_matrix(model)


def write_as_convolutions(
    model: Any, kernels: Kernels | None = None, *, int8_tokens: int = INT8_TOKENS
) -> None:
    """Replace products of tokens [B, N, K] and a matrix [K, D] by convolutions of width 1.

    A convolution takes [B, K, N] and returns [B, D, N]. OpenVINO stores these in the same order as
    [B, N, K] and [B, N, D], so the transpositions around it copy nothing. It only does if all
    shapes of `model` are known. Products of bytes are replaced if a batch has at most `int8_tokens`
    tokens.

    The kernels are the matrices, transposed, and OpenVINO keeps them in memory. Those in `kernels`
    are used again, and new ones are added: models that are compiled for other shapes share them.
    """
    kernels = {} if kernels is None else kernels
    for add, product, bias in list(_products_of_tokens(model)):
        batch, tokens, _ = product.get_output_shape(0)
        if not _is_int8(product) or batch * tokens <= int8_tokens:
            _replace(add, product.input_value(0), _kernel(product, kernels), bias.get_data())


def _products_of_tokens(model: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Each sum of a product and a bias, the product [B, N, D], and the bias [D], a Constant."""
    for add, product, bias in products_with_bias(model):
        if _is_of_tokens(product):
            width = product.get_output_partial_shape(0)[2]
            if list(bias.get_output_shape(0)) == [width.get_length()]:
                yield add, product, bias


def _is_of_tokens(product: Any) -> bool:
    """Whether `product` is of tokens [B, N, K] and a matrix [K, D], neither of them transposed."""
    if product.get_type_name() != "MatMul" or any(product.get_attributes().values()):
        return False
    has_matrix = product.input_value(1).get_node().get_type_name() == "Constant"
    return len(product.get_output_partial_shape(0)) == 3 and (has_matrix or _is_int8(product))


def _is_int8(product: Any) -> bool:
    """Whether `product` is of bytes: fixed scales round its tokens, and its matrix is int8.

    A product whose tokens are rounded at each call is none. As a convolution it would be of floats.
    """
    tokens, matrix = (value.get_node() for value in product.input_values())
    while tokens.get_type_name() in _DEQUANTIZES:
        tokens = tokens.input_value(0).get_node()
    kinds = (tokens.get_type_name(), matrix.get_type_name())
    return kinds == ("FakeQuantize", "Multiply")


def _kernel(product: Any, kernels: Kernels) -> Any:
    """The matrix [K, D] of `product` as a kernel [D, K, 1]."""
    from openvino import opset1  # import_openvino was here before

    matrix = product.input_value(1).get_node()
    if matrix.get_type_name() == "Constant":
        return _transposed(matrix, kernels)
    integers, scales = (_constant_before(value.get_node()) for value in matrix.input_values())
    numbers = opset1.convert(_transposed(integers, kernels), np.float32)
    return opset1.multiply(numbers, scales.get_data().reshape(-1, 1, 1))


def _constant_before(node: Any) -> Any:
    """The Constant that `node` converts or reshapes."""
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return node


def _transposed(matrix: Any, kernels: Kernels) -> Any:
    """`matrix` [K, D] as a Constant [D, K, 1], which shares the memory of its kernel."""
    from openvino import op  # import_openvino was here before

    name = matrix.get_friendly_name()
    if name not in kernels:
        kernels[name] = np.ascontiguousarray(matrix.data.T)[..., np.newaxis]
    return op.Constant(kernels[name], shared_memory=True)


def _replace(add: Any, tokens: Any, kernel: Any, bias: NDArray[Any]) -> None:
    """Put a convolution of `tokens` in the place of `add` and of the operator fused into it.

    That operator has to be on the convolution's side of the transposition. Otherwise OpenVINO
    rounds to bfloat16 before it.
    """
    from openvino import opset1, opset7  # import_openvino was here before

    columns = opset1.transpose(tokens, _EXCHANGED)
    result = opset1.convolution(columns, kernel, [1], [0], [0], [1])
    result = opset1.add(result, bias.reshape(1, -1, 1))
    replaced, followers = add, readers(add)
    kind = followers[0].get_type_name() if len(followers) == 1 else ""
    if kind == "Gelu":
        replaced = followers[0]
        result = opset7.gelu(result, replaced.get_attributes()["approximation_mode"])
    elif kind == "PRelu":
        replaced = followers[0]
        result = opset1.prelu(result, replaced.input_value(1))
    rows = opset1.transpose(result, _EXCHANGED)
    for reader in list(replaced.output(0).get_target_inputs()):
        reader.replace_source_output(rows.output(0))
