"""The emulation of half precision, against torch's own half kernels and against itself."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from dinov2rt.benchmarks.studies.emulation import emulated
from dinov2rt.bundle.precision import Precision
from dinov2rt.export.surgery import Writer

TYPES = {
    Precision.FP16: (ir.DataType.FLOAT16, torch.float16, 2**-11),
    Precision.BF16: (ir.DataType.BFLOAT16, torch.bfloat16, 2**-8),
}
RNG = np.random.default_rng(5)
TOKENS = RNG.standard_normal((1, 2, 33, 64), dtype=np.float32)
MATRIX = RNG.standard_normal((64, 64), dtype=np.float32) / 8
VECTOR = RNG.standard_normal(64, dtype=np.float32)

OPERATORS: dict[str, Callable[..., torch.Tensor]] = {
    "MatMul": lambda x, matrix, _: x @ matrix,
    "Add": lambda x, _, vector: x + vector,
    "Mul": lambda x, _, vector: x * vector,
    "Gelu": lambda x, *_: functional.gelu(x),
    "Sigmoid": lambda x, *_: torch.sigmoid(x),
    "Attention": lambda x, *_: functional.scaled_dot_product_attention(x, x, x),
}


def one_operator(op_type: str, half: ir.DataType) -> ir.Model:
    """A graph that rounds its input and its constants, computes, and widens the result."""
    tokens = ir.val("tokens", dtype=ir.DataType.FLOAT, shape=TOKENS.shape)
    last = ir.node("Identity", [tokens], name="last")
    graph = ir.Graph([tokens], [], nodes=[last], opset_imports={"": 23}, name="one_operator")
    insert = Writer(graph, last)
    given = insert("Cast", tokens, dtype=half)
    others: list[ir.Value] = []
    if op_type == "Attention":
        others = [given, given]
    elif op_type in ("MatMul", "Add", "Mul"):
        constant = MATRIX if op_type == "MatMul" else VECTOR
        others = [insert("Cast", insert("Identity", constant), dtype=half)]
    attributes = {"scale": 0.125} if op_type == "Attention" else {}
    result = insert(op_type, given, *others, dtype=half, **attributes)
    last.replace_input_with(0, insert("Cast", result))
    last.outputs[0].name, last.outputs[0].type = "result", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(last.outputs[0])
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("op_type", OPERATORS)
def test_an_operator_agrees_with_torch_in_half(op_type: str, precision: Precision) -> None:
    half, torch_type, roundoff = TYPES[precision]
    got = emulated(one_operator(op_type, half))(TOKENS)["result"]
    inputs = (torch.from_numpy(array).to(torch_type) for array in (TOKENS, MATRIX, VECTOR))
    want = OPERATORS[op_type](*inputs).float().numpy()
    assert np.array_equal(got, torch.from_numpy(got).to(torch_type).float().numpy())
    # Sums in another order may round differently; the error of a sum near zero is relative to its
    # terms.
    assert np.abs(got - want).max() <= 2 * roundoff * np.abs(want).max()
    # Attention kernels round the probabilities before they are normalised, or in blocks.
    assert np.mean(got == want) > (0.7 if op_type == "Attention" else 0.98)


def test_accumulation_is_in_float32() -> None:
    ones = np.full((1, 1, 1, 4096), 1.0, np.float32)
    tokens = ir.val("tokens", dtype=ir.DataType.FLOAT, shape=ones.shape)
    last = ir.node("Identity", [tokens], name="last")
    graph = ir.Graph([tokens], [], nodes=[last], opset_imports={"": 23}, name="sum")
    insert = Writer(graph, last)
    half = ir.DataType.FLOAT16
    column = insert("Cast", insert("Identity", np.ones((4096, 1), np.float32)), dtype=half)
    total = insert("MatMul", insert("Cast", tokens, dtype=half), column, dtype=half)
    last.replace_input_with(0, insert("Cast", total))
    last.outputs[0].name, last.outputs[0].type = "result", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(last.outputs[0])
    # Accumulated in float16 the sum would stop at 2048, where adding 1 changes nothing.
    assert emulated(ir.Model(graph, ir_version=10))(ones)["result"].item() == 4096


@pytest.mark.parametrize(("value", "stored"), [(70000.0, np.inf), (2**-24, 2**-24), (1e-8, 0.0)])
def test_range_is_that_of_float16(value: float, stored: float) -> None:
    tokens = np.full(TOKENS.shape, value, np.float32)
    model = one_operator("Mul", ir.DataType.FLOAT16)
    constant = next(iter(model.graph.initializers.values()))
    constant.const_value = ir.tensor(np.ones(64, np.float32), name=constant.name)
    assert np.all(emulated(model)(tokens)["result"] == np.float32(stored))


def test_the_typed_graph_stays_as_it_was() -> None:
    model = one_operator("Attention", ir.DataType.FLOAT16)
    before = ir.to_proto(model).SerializeToString()
    emulated(model)
    assert ir.to_proto(model).SerializeToString() == before
