"""Proof that attention is one fused kernel a block, in the type that was asked for.

Three things are looked at, because none of them is enough alone: what the parsed network asks for,
that the builder found a dedicated kernel for each (or it fails), and which kernels it then listed.
See docs/adr/0006 for what that proves and what it cannot.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import FusionError

NO_KERNEL = "was not supported by a dedicated kernel"
"""What the builder says of an attention that it may not take apart and cannot fuse."""

_BLOCK = re.compile(r"blocks\.(\d+)[./]")
_PROFILE = re.compile(r"\[profile (\d+)\]")
_KERNEL = re.compile(r"Name: \S*mha")  # _gemm_mha_v2, _gemv_mha_v1, fmha_v2
_KERNEL_BLOCK = re.compile(r"\[ONNX Layer: blocks\.(\d+)/")
_KERNEL_TYPE = re.compile(r"Datatype: (\w+)")

_TYPE_NAMES = {Precision.FP16: "Half", Precision.BF16: "BFloat16", Precision.FP32: "Float"}


@dataclass(slots=True)
class BlockFacts:
    """What one transformer block of a network asks for."""

    attentions: int = 0
    decomposable: bool = False
    types: set[str] = field(default_factory=set)


def read_network(trt: Any, network: Any) -> dict[int, BlockFacts]:
    """The blocks of a parsed network: their attentions, and the types that their products take."""
    kind = trt.LayerType
    blocks: dict[int, BlockFacts] = defaultdict(BlockFacts)
    for layer in map(network.get_layer, range(network.num_layers)):
        match = _BLOCK.match(layer.name)
        if match is None or layer.type not in (kind.ATTENTION_INPUT, kind.MATRIX_MULTIPLY):
            continue
        facts = blocks[int(match[1])]
        facts.types.update(_input_types(trt, layer))
        if layer.type == kind.ATTENTION_INPUT:
            facts.attentions += 1
            layer.__class__ = trt.IAttentionInputLayer  # the bindings hand out the base class
            facts.decomposable |= layer.attention.decomposable
    return dict(blocks)


def check_network(blocks: dict[int, BlockFacts], depth: int, claimed: Precision) -> Precision:
    """The precision of the blocks, read from the network; see `read_network`.

    Raises:
        FusionError: a block has not exactly one attention, or one that may be taken apart, or
            multiplies in another type than the graph claims.
    """
    found = [blocks.get(index, BlockFacts()) for index in range(depth)]
    odd = [index for index, facts in enumerate(found) if facts.attentions != 1]
    if odd or len(blocks) != depth:
        raise FusionError(
            f"{_blocks(odd or blocks)} of the graph must have one attention operator each, for "
            f"{depth} blocks; export the bundle again"
        )
    loose = [index for index, facts in enumerate(found) if facts.decomposable]
    if loose:
        raise FusionError(
            f"attention in {_blocks(loose)} is marked as decomposable, so a build proves nothing; "
            "export the bundle again"
        )
    mislabelled = [index for index, facts in enumerate(found) if facts.types != {claimed}]
    if mislabelled:
        types = sorted(set().union(*(found[index].types for index in mislabelled)))
        raise FusionError(
            f"the graph says {claimed}, but {_blocks(mislabelled)} multiply in {', '.join(types)}; "
            "export the bundle again"
        )
    return claimed


def no_kernel(depth: int) -> FusionError:
    """What to say when the builder found no fused kernel; it does not say for which block."""
    return FusionError(
        f"the builder has no fused kernel for the attention of a block among "
        f"{_blocks(range(depth))}; fp16 with head_dim 64 has one"
    )


def check_kernels(
    layers: str, profile_names: Sequence[str], depth: int, precision: Precision
) -> int:
    """The number of fused attention kernels in each profile, one a block, from the list of layers.

    Raises:
        FusionError: a block has none or several in some profile, or one of another type.
    """
    kernels: dict[int, Counter[int]] = defaultdict(Counter)
    for profile, line in _with_profile(layers.splitlines()):
        if _KERNEL.match(line):
            for block in {int(index) for index in _KERNEL_BLOCK.findall(line)}:
                kernels[profile][block] += 1
                _check_type(line, block, precision)
    for index, name in enumerate(profile_names):
        odd = [block for block in range(depth) if kernels[index][block] != 1]
        if odd:
            raise FusionError(
                f"profile {name} has not exactly one fused attention kernel in {_blocks(odd)}; "
                "the plan is not kept"
            )
    return depth


def _input_types(trt: Any, layer: Any) -> set[str]:
    names = {
        trt.DataType.HALF: Precision.FP16,
        trt.DataType.BF16: Precision.BF16,
        trt.DataType.FLOAT: Precision.FP32,
    }
    tensors = [layer.get_input(index) for index in range(layer.num_inputs)]
    return {names.get(tensor.dtype, str(tensor.dtype)) for tensor in tensors if tensor is not None}


def _with_profile(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Each line with its profile: only some state it, and hold for those that follow."""
    profile = 0
    for line in lines:
        if match := _PROFILE.search(line):
            profile = int(match[1])
        yield profile, line


def _check_type(line: str, block: int, precision: Precision) -> None:
    types = sorted(set(_KERNEL_TYPE.findall(line)))
    if _TYPE_NAMES[precision] not in types:
        raise FusionError(
            f"the builder computes the attention of blocks.{block} in {', '.join(types)}, the "
            f"graph says {precision}; the plan is not kept"
        )


def _blocks(indices: Iterable[int]) -> str:
    names = [f"blocks.{index}" for index in sorted(indices)]
    return names[0] if len(names) == 1 else f"{len(names)} blocks ({', '.join(names)})"
