"""Variations of the typed graph: one part at a time moves to half precision or to float32."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import Variant
from dinov2rt.export.folding import fold_attention_scale, fold_layer_scale
from dinov2rt.export.surgery import Writer, bypass, module_of, nodes_of
from dinov2rt.export.typed import Policy, autocast, to_half

Step = Callable[[ir.Model, Variant], None]


@dataclass(frozen=True, slots=True)
class TypedForm:
    """A way to type the graph: `steps` rewrite the float32 trace, then `policy` types it."""

    name: str
    policy: Policy = autocast
    steps: tuple[Step, ...] = (fold_attention_scale,)

    def build(self, trace: ir.Model, variant: Variant, precision: Precision) -> ir.Model:
        """The typed graph; `trace` is not changed."""
        model = trace.clone()
        for step in self.steps:
            step(model, variant)
        to_half(model, precision, self.policy)
        return model


def _leaf(node: ir.Node) -> str:
    return module_of(node).rpartition(".")[2]


def _bias(node: ir.Node) -> bool:
    return node.op_type == "Add" and _leaf(node) in ("proj", "down")


def _layer_scale(node: ir.Node) -> bool:
    return _leaf(node) in ("ls1", "ls2") or _bias(node)


def _norm(node: ir.Node) -> bool:
    return _leaf(node) in ("norm1", "norm2")


def _residual(node: ir.Node) -> bool:
    return (node.op_type == "Add" and _leaf(node).isdigit()) or _layer_scale(node)


def _position(node: ir.Node) -> bool:
    return module_of(node) == "position"


def _position_products(node: ir.Node) -> bool:
    return _position(node) and node.op_type == "MatMul"


def _activation(node: ir.Node) -> bool:
    return node.op_type in ("Gelu", "Sigmoid", "Mul")


def _added(node: ir.Node) -> bool:
    return node.op_type == "Add"


def _in(leaf: str) -> Policy:
    return lambda node: _leaf(node) == leaf


def _of_type(op_type: str) -> Policy:
    return lambda node: node.op_type == op_type


def _half(*parts: Policy) -> Policy:
    """Autocast with further parts in half precision."""
    return lambda node: autocast(node) or any(part(node) for part in parts)


def _float(*parts: Policy) -> Policy:
    """Autocast with some parts in float32."""
    return lambda node: autocast(node) and not any(part(node) for part in parts)


def _fold_layer_scale(model: ir.Model, _variant: Variant) -> None:
    fold_layer_scale(model)


def _scale_query_and_key(model: ir.Model, variant: Variant) -> None:
    """Multiply q and k by the root of the scale, as TensorRT's parser does by default."""
    root = np.float32(variant.head_dim**-0.25)
    for attention in nodes_of(model, "Attention"):
        insert = Writer(model.graph, attention)
        for index, value in enumerate(attention.inputs[:2]):
            attention.replace_input_with(index, insert("Mul", value, root))
        attention.attributes["scale"] = ir.AttrFloat32("scale", 1.0)


def _spell_out_norms(model: ir.Model, _variant: Variant) -> None:
    """Write LayerNorm as single operators, each of which stores its result."""
    for norm in nodes_of(model, "LayerNormalization"):
        insert = Writer(model.graph, norm)
        tokens, weight, bias = norm.inputs
        axes, epsilon = np.array([-1]), np.float32(norm.attributes["epsilon"].as_float())
        centred = insert("Sub", tokens, insert("ReduceMean", tokens, axes))
        variance = insert("ReduceMean", insert("Mul", centred, centred), axes)
        deviation = insert("Sqrt", insert("Add", variance, epsilon))
        scaled = insert("Mul", insert("Div", centred, deviation), weight)
        bypass(model.graph, norm, insert("Add", scaled, bias))


CHOSEN = TypedForm("as chosen")

INTO_HALF = (
    TypedForm("bias of proj and down", _half(_bias)),
    TypedForm("LayerScale, with that bias", _half(_layer_scale)),
    TypedForm(
        "LayerScale folded into the weights", steps=(_fold_layer_scale, fold_attention_scale)
    ),
    TypedForm("attention scale √s on q and k", steps=(_scale_query_and_key,)),
    TypedForm("LayerNorm stored, statistics in FP32", _half(_norm)),
    TypedForm("LayerNorm throughout", _half(_norm), steps=(_spell_out_norms, fold_attention_scale)),
    TypedForm("residual stream", _half(_residual)),
    TypedForm("residual stream and LayerNorm stored", _half(_residual, _norm)),
    TypedForm("products of the position table", _half(_position_products)),
    TypedForm("all of the position table", _half(_position)),
)
"""Parts that are in float32, moved to FP16 one at a time."""

INTO_FLOAT = (
    TypedForm("patch embedding", _float(_of_type("Conv"))),
    TypedForm("bias of qkv and up", _float(_added)),
    TypedForm("product qkv", _float(_in("qkv"))),
    TypedForm("attention", _float(_of_type("Attention"))),
    TypedForm("product proj", _float(_in("proj"))),
    TypedForm("product up", _float(_in("up"))),
    TypedForm("GELU or SwiGLU", _float(_activation)),
    TypedForm("product down", _float(_in("down"))),
    TypedForm("all", lambda _node: False),
)
"""Parts that are in FP16, moved to float32 one at a time."""
