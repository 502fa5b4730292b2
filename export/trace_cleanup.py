"""Removes what torch's exporter leaves in a graph, and names what it leaves unnamed."""

import re

import onnx_ir as ir

_MODULE = re.compile(r"'([a-z][\w.]*)'")  # torch's own hooks begin with an underscore


def name_nodes(graph: ir.Graph, root: str) -> None:
    """Name each node after the module that it came from, e.g. `qkv/MatMul_3`."""
    module = ""
    for index, node in enumerate(graph):
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        if scopes is not None:  # a node without one belongs to the module of the one before it
            module = ["", *_MODULE.findall(scopes.rpartition(",")[0])][-1]
        node.name = f"{module or root}/{node.op_type}_{index}"


def drop_trace_leftovers(model: ir.Model) -> None:
    """Remove source paths, stack traces, and attributes with default values."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        if node.op_type == "Attention":  # TensorRT documents two of them as unsupported
            for attribute in ("softcap", "qk_matmul_output_mode", "is_causal"):
                node.attributes.pop(attribute, None)
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def copy_dimensions(block: ir.Graph) -> None:
    """Make Reshape copy batch and tokens (0 in ONNX) instead of computing them by Shape nodes."""
    for node in [node for node in block if node.op_type == "Reshape"]:
        shape = node.outputs[0].shape
        if shape is None or node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        target = ir.tensor([0, 0, *(int(str(dim)) for dim in shape[2:])], dtype=ir.DataType.INT64)
        name = f"{node.name}_shape"
        value = ir.val(name, dtype=target.dtype, shape=[len(shape)], const_value=target)
        block.initializers.add(value)
        node.replace_input_with(1, value)
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def forget_inner_shapes(graph: ir.Graph) -> None:
    """Drop inner shapes: with a front end that pads, they would be wrong."""
    ends = {id(output) for output in graph.outputs}
    for node in graph:
        for value in node.outputs:
            if id(value) not in ends:
                value.shape = None
