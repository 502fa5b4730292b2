"""Where ONNX Runtime's CUDA provider would place each node of a graph, without a GPU.

The rules are those of `GetCpuPreferredNodes` in `onnxruntime/core/framework/
fallback_cpu_capability.cc`, restated: what follows from the output of a Shape node alone goes to
the CPU, unless the CUDA kernel takes it as an input that lies on the host, or it is half precision.
"""

from collections.abc import Iterator

import onnx_ir as ir

_HOST_OUTPUTS = {"Shape", "Size"}
_HOST_INPUTS: dict[str, set[int]] = {
    "ConstantOfShape": {0},
    "Expand": {1},
    "Pad": {1, 2, 3},
    "Range": {0, 1, 2},
    "Reshape": {1},
    "ReduceSum": {1},
    "Slice": {1, 2, 3, 4},
    "Split": {1},
    "Squeeze": {1},
    "Tile": {1},
    "Unsqueeze": {1},
}
_SMALL = 100
_HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def copies_between_providers(model: ir.Model) -> list[str]:
    """Each value that would be copied between host and GPU, as `NODE: VALUE`.

    A session with any such copy refuses to capture CUDA graphs.
    """
    on_host = _values_on_host(model.graph)
    copies = dict.fromkeys(
        f"{node.name}: {value.name}"
        for node in model.graph
        for index, value in enumerate(node.inputs)
        if value is not None and _is_copied(node, index, value, on_host)
    )
    return list(copies)


def reads_of_host_buffers(model: ir.Model) -> list[str]:
    """Names of the nodes whose CUDA kernel reads numbers from a host buffer of the call.

    ONNX Runtime frees the buffer after the call, so a captured CUDA graph would read numbers of
    later calls. These are Split, and Concat of parts that are not known to be of one length
    (`onnxruntime/core/providers/cuda/tensor/concat.cc`, `CudaAsyncBuffer`).
    """
    on_host = _values_on_host(model.graph)
    return [
        node.name or ""
        for node in model.graph
        if not _runs_on_host(node, on_host)
        and (node.op_type == "Split" or (node.op_type == "Concat" and not _has_equal_parts(node)))
    ]


def _has_equal_parts(concat: ir.Node) -> bool:
    axis = concat.attributes["axis"].as_int()
    shapes = [value.shape if value is not None else None for value in concat.inputs]
    lengths = {shape[axis] if shape is not None else None for shape in shapes}
    return len(lengths) == 1 and all(isinstance(length, int) for length in lengths)


def _is_copied(node: ir.Node, index: int, value: ir.Value, on_host: set[ir.Value]) -> bool:
    if value.producer() is None:
        return False  # weights and inputs lie where their first reader wants them
    takes_host = _takes_host(node, index) or _runs_on_host(node, on_host)
    if node.op_type in _HOST_OUTPUTS:
        return False  # it reads the shape, wherever the data lies
    return takes_host != (value in on_host)


def _takes_host(node: ir.Node, index: int) -> bool:
    return index in _HOST_INPUTS.get(node.op_type, set())


def _runs_on_host(node: ir.Node, on_host: set[ir.Value]) -> bool:
    return node.op_type not in _HOST_OUTPUTS and any(out in on_host for out in node.outputs)


def _values_on_host(graph: ir.Graph) -> set[ir.Value]:
    on_host: set[ir.Value] = set()
    for node in graph:
        if node.op_type in _HOST_OUTPUTS or _is_cpu_preferred(graph, node, on_host):
            on_host.update(node.outputs)
    return on_host


def _is_cpu_preferred(graph: ir.Graph, node: ir.Node, on_host: set[ir.Value]) -> bool:
    inputs = [(index, value) for index, value in enumerate(node.inputs) if value is not None]
    if not any(value in on_host for _, value in inputs):
        return False  # only readers of host values are looked at
    return all(_may_be_on_host(graph, node, index, value, on_host) for index, value in inputs)


def _may_be_on_host(
    graph: ir.Graph, node: ir.Node, index: int, value: ir.Value, on_host: set[ir.Value]
) -> bool:
    if value.dtype in _HALF:
        return False
    if _is_small_constant(value) or value in graph.inputs:
        return True
    return value in on_host and not _takes_host(node, index)


def _is_small_constant(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size <= _SMALL


def kernels_by_operator(model: ir.Model, prefix: str) -> Iterator[str]:
    """Operators of the nodes whose name begins with `prefix` that launch a kernel on the GPU."""
    on_host = _values_on_host(model.graph)
    for node in model.graph:
        is_launched = not _runs_on_host(node, on_host) and node.op_type not in (
            "Reshape",
            "Shape",
            "Squeeze",
            "Unsqueeze",
        )
        if (node.name or "").startswith(prefix) and is_launched:
            yield node.op_type
