"""Checks that each block's attention is one fused kernel, in the requested precision.

Three checks are needed, because none is enough alone: the parsed network requests fused attention;
the builder fails if it has no fused kernel; and the kernels that the builder lists are attention
kernels. See docs/adr/0006 for what this proves and what it does not.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import FusionError

NO_KERNEL = "was not supported by a dedicated kernel"
"""The builder logs this for attention that must not be decomposed and that it cannot fuse."""

_BLOCK = re.compile(r"blocks\.(\d+)[./]")
_PROFILE = re.compile(r"\[profile (\d+)\]")
_KERNEL = re.compile(r"Name: \S*mha")  # _gemm_mha_v2, _gemv_mha_v1, fmha_v2
_KERNEL_BLOCK = re.compile(r"\[ONNX Layer: blocks\.(\d+)/")
_KERNEL_TYPE = re.compile(r"Datatype: (\w+)")

_TYPE_NAMES = {Precision.FP16: "Half", Precision.BF16: "BFloat16", Precision.FP32: "Float"}


@dataclass(slots=True)
class BlockFacts:
    """Facts about one transformer block of a parsed network.

    `types` are the input types of its matrix multiplications and its attention.
    """

    attentions: int = 0
    decomposable: bool = False
    types: set[str] = field(default_factory=set)


def read_network(trt: Any, network: Any) -> dict[int, BlockFacts]:
    """Facts about the blocks of a parsed network, by the block's index."""
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
            layer.__class__ = trt.IAttentionInputLayer  # the bindings return the base class
            facts.decomposable |= layer.attention.decomposable
    return dict(blocks)


def check_network(blocks: dict[int, BlockFacts], depth: int, claimed: Precision) -> Precision:
    """Check the blocks of a parsed network and return their precision, which is `claimed`.

    Raises:
        FusionError: a block does not have exactly one attention, its attention may be decomposed,
            or it multiplies in another precision than the graph claims.
    """
    found = [blocks.get(index, BlockFacts()) for index in range(depth)]
    odd = [index for index, facts in enumerate(found) if facts.attentions != 1]
    if odd or len(blocks) != depth:
        raise FusionError(
            f"{_blocks(odd or blocks)} of the graph must have one attention operator each, for "
            f"{depth} blocks; export the bundle again"
        )
    decomposable = [index for index, facts in enumerate(found) if facts.decomposable]
    if decomposable:
        raise FusionError(
            f"attention in {_blocks(decomposable)} is marked as decomposable, so that a build "
            "would not prove fusion; export the bundle again"
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
    """The error for a build without a fused kernel; the builder does not say for which block."""
    return FusionError(
        f"the builder has no fused kernel for the attention of a block among "
        f"{_blocks(range(depth))}; fp16 with head_dim 64 has one"
    )


def check_kernels(
    layers: str, profile_names: Sequence[str], depth: int, precision: Precision
) -> int:
    """Check the list of kernels and return the number of fused attention kernels per profile.

    Raises:
        FusionError: in some profile, a block does not have exactly one fused attention kernel, or
            has one of another precision.
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
                f"profile {name} does not have exactly one fused attention kernel in "
                f"{_blocks(odd)}; the plan is rejected"
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
    """Each line with its profile; a line without a profile belongs to the last one named."""
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
            f"graph says {precision}; the plan is rejected"
        )


def _blocks(indices: Iterable[int]) -> str:
    names = [f"blocks.{index}" for index in sorted(indices)]
    return names[0] if len(names) == 1 else f"{len(names)} blocks ({', '.join(names)})"
