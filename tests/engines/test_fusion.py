from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from dinov2rt.bundle.precision import Precision
from dinov2rt.engines.fusion import BlockFacts, check_kernels, check_network, read_network
from dinov2rt.errors import FusionError

Parse = Callable[[Path], tuple[Any, Any]]
DEPTH = 12


def _kernel(block: int, profile: int, kind: str = "Half", name: str = "_gemm_mha_v2") -> str:
    return (
        f"Name: {name}_myl{profile}_{block}, LayerType: kgen, "
        f"Inputs: [ {{ Name: q, Dimensions: [-1,261,64], Datatype: {kind}, Format: linear }}], "
        f"Metadata: [ONNX Layer: blocks.{block}/Attention_{block}]"
    )


def _layers(blocks: list[list[int]], **kernel: str) -> str:
    """The builder's list of kernels for two profiles; only the first line of the second names it.

    Lines without a profile belong to the last profile that was named.
    """
    lines = ["Layers:"]
    for profile, found in enumerate(blocks):
        mark = f" [profile {profile}]" if profile else ""
        lines.append(f"Name: tokens/Conv_6{mark}_myl{profile}, LayerType: correlation")
        for block in found:
            lines.append(
                f"Name: __myl_Move_{block}, Metadata: [ONNX Layer: blocks.{block}/Attention]"
            )
            lines.append(_kernel(block, profile, **kernel))
    return "\n".join(lines)


def test_the_network_of_s_has_one_attention_a_block_in_fp16(
    trt: Any, bundle_s_reg: Path, parse: Parse
) -> None:
    network, _ = parse(bundle_s_reg / "fp16.onnx")
    blocks = read_network(trt, network)
    assert blocks == {
        index: BlockFacts(1, decomposable=False, types={Precision.FP16}) for index in range(DEPTH)
    }
    assert check_network(blocks, DEPTH, Precision.FP16) is Precision.FP16


def test_attention_in_float32_is_refused_by_name(
    trt: Any, edited: Callable[..., Path], float_attention: Callable[..., Any], parse: Parse
) -> None:
    """The builder would silently fuse it in fp16; only the parsed network shows the fault."""
    network, _ = parse(edited(float_attention(3, 7)) / "fp16.onnx")
    with pytest.raises(FusionError) as caught:
        check_network(read_network(trt, network), DEPTH, Precision.FP16)
    assert str(caught.value) == (
        "the graph says fp16, but 2 blocks (blocks.3, blocks.7) multiply in fp16, fp32; "
        "export the bundle again"
    )


def test_a_graph_that_is_mislabelled_as_a_whole_is_refused(
    trt: Any, bundle_s_reg: Path, parse: Parse
) -> None:
    network, _ = parse(bundle_s_reg / "fp32.onnx")
    with pytest.raises(FusionError, match=r"says fp16, but 12 blocks .* multiply in fp32;"):
        check_network(read_network(trt, network), DEPTH, Precision.FP16)


def test_attention_without_the_operator_is_refused_by_name(
    trt: Any, edited: Callable[..., Path], parse: Parse
) -> None:
    network, _ = parse(edited(_explicit_attention) / "fp16.onnx")
    with pytest.raises(FusionError, match=r"blocks\.5 of the graph must have one attention"):
        check_network(read_network(trt, network), DEPTH, Precision.FP16)


def test_decomposable_attention_is_refused_by_name(
    trt: Any, bundle_s_reg: Path, parse: Parse
) -> None:
    network, _ = parse(bundle_s_reg / "fp16.onnx")
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.name.startswith("blocks.2/") and layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    with pytest.raises(FusionError, match=r"attention in blocks\.2 is marked as decomposable"):
        check_network(read_network(trt, network), DEPTH, Precision.FP16)


def test_a_graph_of_another_depth_is_refused(trt: Any, bundle_s_reg: Path, parse: Parse) -> None:
    network, _ = parse(bundle_s_reg / "fp16.onnx")
    with pytest.raises(FusionError, match="one attention operator each, for 24 blocks"):
        check_network(read_network(trt, network), 24, Precision.FP16)


def test_one_kernel_a_block_in_every_profile_is_the_proof() -> None:
    layers = _layers([[0, 1, 2], [0, 1, 2]])
    assert check_kernels(layers, ["224", "wide"], 3, Precision.FP16) == 3
    gemv = _layers([[0, 1, 2]], name="_gemv_mha_v1")
    assert check_kernels(gemv, ["224"], 3, Precision.FP16) == 3


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (_layers([[0, 1, 2], [0, 2]]), "profile wide does not .* in blocks.1; .* is rejected"),
        (_layers([[0], [0, 1, 2]]), r"profile 224 does not .* in 2 blocks \(blocks.1, blocks.2\)"),
        (_layers([[0, 1, 1, 2], [0, 1, 2]]), "profile 224 does not .* in blocks.1"),
        (_layers([[0, 1, 2]]), "profile wide does not .* in 3 blocks"),
        (_layers([[0, 1, 2], [0, 1, 2]], name="_gemm_softmax"), "profile 224 does not .* 3 blocks"),
        (_layers([[0, 1, 2], [0, 1, 2]], kind="Float"), "blocks.0 in Float, the graph says fp16"),
        ("", "profile 224 does not .* in 3 blocks"),
    ],
)
def test_a_missing_kernel_is_named_with_its_profile(layers: str, message: str) -> None:
    with pytest.raises(FusionError, match=message):
        check_kernels(layers, ["224", "wide"], 3, Precision.FP16)


def _explicit_attention(graph: ir.Graph) -> None:
    """Spell out the attention of block 5 as MatMul, Softmax, MatMul."""
    (node,) = (node for node in graph if (node.name or "").startswith("blocks.5/Attention"))
    query, key, value = node.inputs[:3]
    steps = [ir.node("Transpose", [key], {"perm": [0, 1, 3, 2]}, name="blocks.5/k")]
    steps.append(ir.node("MatMul", [query, steps[0].outputs[0]], name="blocks.5/qk"))
    steps.append(ir.node("Softmax", [steps[1].outputs[0]], {"axis": -1}, name="blocks.5/softmax"))
    steps.append(ir.node("MatMul", [steps[2].outputs[0], value], name="blocks.5/pv"))
    for step in steps:
        step.outputs[0].name = f"{step.name}_out"
    graph.insert_before(node, steps)
    ir.convenience.replace_all_uses_with(node.outputs[0], steps[-1].outputs[0])
    graph.remove(node, safe=True)
