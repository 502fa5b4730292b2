"""Chooses the library that computes float32 matrix products in OpenVINO: see docs/adr/0008."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.cpu import this_cpu

_LARGE = 16 << 20
"""Bytes of a matrix from which on OpenVINO takes another, slower kernel of oneDNN."""


def choose_product_library(model: Any, precision: Precision) -> None:
    """Make OpenVINO compute products with the fastest library here: docs/adr/0008.

    `precision` is what everything but int8 products computes in. MLAS has no bfloat16, and there,
    what is added for oneDNN also keeps sums in float32 (docs/adr/0018).
    """
    cpu = this_cpu()
    is_mlas_faster = (
        precision is Precision.FP32 and cpu.multiplies_bf16_tiles and has_large_matrix(model)
    )
    if "AVX-512" in cpu.instruction_sets and not is_mlas_faster:
        choose_onednn(model)
    elif "AVX2" in cpu.instruction_sets:
        choose_mlas(model)


def has_large_matrix(model: Any) -> bool:
    """Whether OpenVINO takes another kernel of oneDNN for a matrix of `model`, in float32."""
    matrices = (product.input_value(1).get_node() for _, product in _float32_products(model))
    return any(matrix.get_byte_size() >= _LARGE for matrix in matrices)


def choose_mlas(model: Any) -> None:
    """Make OpenVINO compute float32 products with MLAS.

    OpenVINO uses MLAS unless it can fuse the operator that follows, here GELU. It cannot if the
    product has a second reader.
    """
    sums = [add for add, _ in _float32_products(model)]
    add_readers(model, [add.output(0) for add in sums if _has_gelu(add)])


def choose_onednn(model: Any) -> None:
    """Make OpenVINO compute float32 products with oneDNN.

    OpenVINO uses MLAS unless an element-wise operator follows that it can fuse. Therefore a PRelu
    is added after products that lack one.
    """
    for add, _ in list(_float32_products(model)):
        if not _has_gelu(add):
            insert_prelu(add.output(0))


def insert_prelu(value: Any) -> Any:
    """Insert a PRelu of slope 1, which returns every value unchanged, between `value` and readers.

    OpenVINO fuses it into the node that computes `value`.
    """
    from openvino import opset1  # import_openvino was here before

    targets = list(value.get_target_inputs())
    prelu = opset1.prelu(value, np.ones(1, np.float32))
    for target in targets:
        target.replace_source_output(prelu.output(0))
    return prelu


def _has_gelu(add: Any) -> bool:
    """Whether GELU reads the result of `add`, as an operator or as its formula.

    Graphs of opset 17 hold the formula, `x / 2 · (1 + erf(x / √2))`, which OpenVINO fuses as well.
    """
    return any(
        reader.get_type_name() == "Gelu"
        or any(next_reader.get_type_name() == "Erf" for next_reader in readers(reader))
        for reader in readers(add)
    )


def readers(node: Any) -> list[Any]:
    """The nodes that read the only output of `node`."""
    return [target.get_node() for target in node.output(0).get_target_inputs()]


def products_with_bias(model: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Each sum of a matrix product and a Constant: the sum, the product and the Constant."""
    for add in model.get_ordered_ops():
        if add.get_type_name() != "Add":
            continue
        product, bias = (add.input_value(index).get_node() for index in range(2))
        if bias.get_type_name() == "MatMul":
            product, bias = bias, product
        if product.get_type_name() == "MatMul" and bias.get_type_name() == "Constant":
            yield add, product, bias


def _float32_products(model: Any) -> Iterator[tuple[Any, Any]]:
    """The sums and products of `products_with_bias` whose matrix is a Constant, in float32."""
    for add, product, _ in products_with_bias(model):
        if product.input_value(1).get_node().get_type_name() == "Constant":
            yield add, product


def add_readers(model: Any, values: Sequence[Any]) -> list[Any]:
    """Give each of `values` [B, N, D] a second reader: an output of one token, never requested.

    Returns the readers, one for each of `values`.
    """
    from openvino import opset1  # import_openvino was here before

    first, token_axis = np.int64(0), np.int64(1)
    tokens = [opset1.gather(value, first, token_axis) for value in values]
    model.add_results([opset1.result(token) for token in tokens])
    return tokens
