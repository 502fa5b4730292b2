"""Which backbone is taken of several, what is left out, and what is refused and why."""

import re

import pytest
import torch
from support.checkpoint_forms import (
    below,
    of_timm_registers,
    of_transformers,
    other,
    plain_state,
)

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.backbone.assembly import assemble
from dinov2rt.export.weights.backbone.names import Naming
from dinov2rt.export.weights.backbone.search import find_backbone

STATE = plain_state()


def refusal(names, prefix=None) -> str:
    with pytest.raises(WeightsError, match=r"^my\.pth [^\n]*$") as caught:
        find_backbone(names, "my.pth", prefix)
    return str(caught.value).removeprefix("my.pth ")


def at(*prefixes: str) -> list[str]:
    return [prefix + name for prefix in prefixes for name in STATE]


@pytest.mark.parametrize(
    ("prefixes", "chosen"),
    [
        (["student.", "teacher."], "teacher"),
        (["student_backbone.", "teacher_backbone."], "teacher_backbone"),
        (["model.", "model_ema."], "model_ema"),
        (["net.", "ema.net."], "ema.net"),
        (["", "averaged."], "averaged"),
        (["backbone.", "backbone_momentum."], "backbone_momentum"),
        (["student.", "student_ema.", "teacher."], "teacher"),
        (["online_encoder.", "target_encoder."], "target_encoder"),
    ],
)
def test_the_teacher_and_the_average_come_first(prefixes, chosen):
    found = find_backbone(at(*prefixes), "my.pth")
    assert found.prefix == chosen
    others = {prefix.rstrip(".") for prefix in prefixes} - {chosen}
    assert sum(found.left_out.values()) == len(STATE) * len(others)


@pytest.mark.parametrize(
    ("prefixes", "listed"),
    [
        (["a.", "b."], "'a', 'b'"),
        (["", "model."], "'', 'model'"),
        (["teacher.", "model."], "'teacher', 'model'"),
        (["teacher.", "model_ema."], "'teacher', 'model_ema'"),
        (["a.", "b.", "c.", "d."], "'a', 'b', 'c' and 1 more"),
    ],
)
def test_equals_are_listed_and_the_prefix_decides(prefixes, listed):
    names = at(*prefixes)
    assert refusal(names) == f"holds several backbones; choose one with --prefix: {listed}"
    for prefix in prefixes:
        assert find_backbone(names, "my.pth", prefix).prefix == prefix.rstrip(".")
        assert find_backbone(names, "my.pth", prefix.rstrip(".")).prefix == prefix.rstrip(".")


def test_a_prefix_may_hold_wrappers_and_end_above_the_backbone():
    names = at("a.module.backbone.", "b.backbone.")
    for prefix in ("a", "a.module", "a.backbone", "a.module.backbone."):
        assert find_backbone(names, "my.pth", prefix).prefix == "a.backbone"
    assert refusal(names, "c") == (
        "holds no backbone below 'c'; --prefix can be 'a.backbone', 'b.backbone'"
    )


def test_what_is_left_out_is_counted_by_module():
    names = at("model.teacher.backbone.", "model.student.backbone.")
    names += ["model.teacher.dino_head.a", "model.teacher.dino_head.b", "optimizer.state.0.exp_avg"]
    found = find_backbone(names, "my.pth")
    assert found.left_out == {
        "model.student": len(STATE),
        "model.teacher.dino_head": 2,
        "optimizer": 1,
    }
    assert not find_backbone(STATE, "my.pth").left_out
    assert find_backbone([*STATE, "head.weight", "fc.bias"], "my.pth").left_out == {
        "fc": 1,
        "head": 1,
    }


def test_whose_names_they_are():
    registers = plain_state(registers=True)
    assert find_backbone(STATE, "my.pth").naming is Naming.OFFICIAL
    assert find_backbone(of_transformers(STATE), "my.pth").naming is Naming.TRANSFORMERS
    assert find_backbone(of_timm_registers(registers), "my.pth").naming is Naming.TIMM


@pytest.mark.parametrize("missing", ["mask_token", "ls1.gamma", "attn.qkv.bias"])
def test_tensors_that_some_models_lack_may_be_missing(missing):
    find_backbone([name for name in STATE if not name.endswith(missing)], "my.pth")


def replaced(old: str, *new: str) -> list[str]:
    return [name.replace(old, each) for name in STATE for each in (new if old in name else [old])]


MERGE = (
    "holds weights with an adapter (LoRA) beside them; merge it first, in PEFT with "
    "merge_and_unload(), and save the result"
)
QUANTISED = (
    "holds quantised weights; dequantise them first, or give the checkpoint that they were made of"
)
QKV = "attn.qkv.weight"
REFUSED = {
    "lora": (
        replaced(QKV, "attn.qkv.base_layer.weight", "attn.qkv.lora_A.default.weight"),
        MERGE,
    ),
    "lora-everywhere": (replaced(".weight", ".base_layer.weight", ".lora_B.weight"), MERGE),
    "lora-of-transformers": (
        [*of_transformers(STATE), "encoder.layer.0.attention.attention.query.lora_A.weight"],
        MERGE,
    ),
    "dora": ([*STATE, "blocks.0.attn.qkv.lora_magnitude_vector.default.weight"], MERGE),
    "own-lora": (replaced(QKV, "attn.qkv.qkv.weight", "attn.qkv.linear_a_q.weight"), MERGE),
    "adapter-alone": (["base_model.model.blocks.0.attn.qkv.lora_A.weight"], MERGE),
    "bitsandbytes-8": ([*STATE, "blocks.0.attn.qkv.SCB"], QUANTISED),
    "bitsandbytes-4": (
        [*STATE, "blocks.0.attn.qkv.weight.quant_state.bitsandbytes__nf4"],
        QUANTISED,
    ),
    "gptq": (replaced(QKV, "attn.qkv.qweight", "attn.qkv.qzeros", "attn.qkv.scales"), QUANTISED),
    "compressed": (replaced(QKV, "attn.qkv.weight_packed", "attn.qkv.weight_scale"), QUANTISED),
    "torch": (replaced(QKV, "attn.qkv._packed_params._packed_params"), QUANTISED),
    "torchao": (replaced(QKV, "attn.qkv._weight_qdata", "attn.qkv._weight_scale"), QUANTISED),
    "quanto": (replaced(QKV, "attn.qkv.weight._data", "attn.qkv.weight._scale"), QUANTISED),
    "flat-shards": (
        ["blocks.0._fsdp_wrapped_module._flat_param", "_flat_param"],
        "holds flattened shards of fully sharded training; save a full state dict first "
        "(StateDictType.FULL_STATE_DICT)",
    ),
    "dinov3": (
        [*(name for name in STATE if name != "pos_embed"), "rope_embed.periods"],
        "holds a model with rotary positions, as DINOv3 has; give a checkpoint of DINOv2",
    ),
    "nothing": ([], "holds no DINOv2 backbone, but no tensors; give a checkpoint that has one"),
    "head-alone": (
        ["weight", "bias"],
        "holds no DINOv2 backbone, but bias (1 tensor), weight (1 tensor); "
        "give a checkpoint that has one",
    ),
    "unknown-module": (
        [*STATE, "blocks.1.attn.q_norm.weight"],
        "holds no whole DINOv2 backbone: unexpected blocks.1.attn.q_norm.weight; "
        "give a checkpoint that has one",
    ),
    "a-block-is-missing": (
        [f"vit.{name}" for name in STATE if "blocks.0" not in name],
        "holds no whole DINOv2 backbone below 'vit': missing blocks.0; "
        "give a checkpoint that has one",
    ),
    "unlike-blocks": (
        [name for name in STATE if name != "blocks.1.ls2.gamma"],
        "holds no whole DINOv2 backbone: missing blocks.1.ls2.gamma; "
        "give a checkpoint that has one",
    ),
    "incomplete-attention": (
        [
            n
            for n in of_transformers(STATE)
            if n != "encoder.layer.1.attention.attention.key.weight"
        ],
        "holds no whole DINOv2 backbone: missing blocks.1.attn.qkv.weight; unexpected "
        "blocks.1.attn.q.weight, blocks.1.attn.v.weight; give a checkpoint that has one",
    ),
    "names-that-become-one": (
        [*STATE, "blocks.0.0.ls1.gamma"],
        "holds tensors that have one name in the model: blocks.0.ls1.gamma, blocks.0.0.ls1.gamma; "
        "keep one",
    ),
    "wrapped-and-not": (
        [*STATE, "module.norm.bias"],
        "holds tensors that have one name in the model: norm.bias, module.norm.bias; keep one",
    ),
}


@pytest.mark.parametrize(("names", "line"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_refused_with_its_cause(names, line):
    assert refusal(names) == line


def test_a_teacher_that_cannot_be_exported_does_not_give_way_to_the_student():
    names = [*at("student.", "teacher."), "teacher.blocks.0.attn.qkv.lora_A.weight"]
    assert refusal(names) == MERGE
    assert find_backbone(names, "my.pth", "student").prefix == "student"


def test_another_vision_transformer_beside_does_not_count():
    names = [*at("dino."), "sam.patch_embed.proj.weight", "sam.pos_embed", "clip.cls_token"]
    assert find_backbone(names, "my.pth").prefix == "dino"


def test_a_huge_block_number_is_no_endless_work():
    assert "unexpected blocks.9999999999.norm1.bias" in refusal(
        [*STATE, "blocks.9999999999.norm1.bias"]
    )
    assert "missing blocks.2;" in refusal([*STATE, "blocks.999999.norm1.bias"])


def state_of(state) -> dict[str, torch.Tensor]:
    return assemble(state, find_backbone(state, "my.pth"), "my.pth")


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        (torch.ones(64, dtype=torch.int8), "torch.int8"),
        (torch.ones(64).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (torch.ones(64).to_sparse(), "torch.float32 (torch.sparse_coo"),
    ],
)
def test_numbers_that_are_no_weights_are_refused(tensor, dtype):
    with pytest.raises(WeightsError, match=rf"^my\.pth: norm\.bias is {re.escape(dtype)}[^\n]*$"):
        state_of(STATE | {"norm.bias": tensor})


def test_of_several_only_the_chosen_tensors_count():
    state = below("student.")({name: t.to(torch.int8) for name, t in STATE.items()})
    found = state_of(state | below("teacher.")(STATE))
    assert torch.equal(found["cls_token"], STATE["cls_token"])
    assert not torch.equal(found["cls_token"], other(STATE)["cls_token"])


def test_a_table_that_is_not_square_needs_its_number_of_patches():
    registers = plain_state(registers=True)
    theirs = of_timm_registers(registers | {"pos_embed": registers["pos_embed"][:, :16]})
    backbone = find_backbone(theirs, "my.pth")
    assert assemble(theirs, backbone, "my.pth")["pos_embed"].shape[1] == 15
    assert assemble(theirs, backbone, "my.pth", 15)["pos_embed"].shape[1] == 16


def test_a_table_that_can_be_read_in_two_ways_is_refused():
    registers = plain_state(registers=True)
    theirs = of_timm_registers(registers | {"pos_embed": registers["pos_embed"][:, :10]})
    with pytest.raises(WeightsError, match=r"^my\.pth: the 9 rows of pos_embed can be read with"):
        assemble(theirs, find_backbone(theirs, "my.pth"), "my.pth")
