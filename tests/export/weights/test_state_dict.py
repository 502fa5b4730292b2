import dataclasses
import hashlib
import math

import pytest
import torch

from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.state_dict import (
    StateDict,
    check_state_dict,
    entries_below,
    official_shapes,
    state_dict_sha256,
    to_float32,
)

TOY = dataclasses.replace(
    find_variant("dinov2_vits14"), embed_dim=64, depth=2, num_heads=1, hidden_dim=96
)


def ones(variant=TOY) -> StateDict:
    return {name: torch.ones(shape) for name, shape in official_shapes(variant).items()}


def shapes_only(name: str) -> StateDict:
    shapes = official_shapes(find_variant(name))
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "keys", "parameters"),
    [
        ("dinov2_vits14", 175, 22_056_576),
        ("dinov2_vits14_reg", 176, 22_058_112),
        ("dinov2_vitb14", 175, 86_580_480),
        ("dinov2_vitb14_reg", 176, 86_583_552),
        ("dinov2_vitl14", 343, 304_368_640),
        ("dinov2_vitl14_reg", 344, 304_372_736),
        ("dinov2_vitg14", 567, 1_136_480_768),
        ("dinov2_vitg14_reg", 568, 1_136_486_912),
    ],
)
def test_counts_are_those_of_the_official_models(name, keys, parameters):
    shapes = official_shapes(find_variant(name))
    assert len(shapes) == keys
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters


def test_shapes_are_those_of_the_official_models():
    small = official_shapes(find_variant("dinov2_vits14_reg"))
    assert small["cls_token"] == (1, 1, 384)
    assert small["pos_embed"] == (1, 1370, 384)
    assert small["register_tokens"] == (1, 4, 384)
    assert small["mask_token"] == (1, 384)
    assert small["patch_embed.proj.weight"] == (384, 3, 14, 14)
    assert small["blocks.11.attn.qkv.weight"] == (1152, 384)
    assert small["blocks.0.attn.proj.bias"] == (384,)
    assert small["blocks.0.mlp.fc1.weight"] == (1536, 384)
    assert small["blocks.0.mlp.fc2.weight"] == (384, 1536)
    giant = official_shapes(find_variant("dinov2_vitg14"))
    assert "register_tokens" not in giant
    assert giant["blocks.39.mlp.w12.weight"] == (8192, 1536)
    assert giant["blocks.39.mlp.w3.weight"] == (1536, 4096)
    assert giant["blocks.39.ls2.gamma"] == (1536,)


def test_a_fitting_state_dict_is_accepted_in_any_order_and_floating_type():
    state = dict(reversed(ones().items()))
    check_state_dict(state, TOY, "here")
    check_state_dict({name: tensor.half() for name, tensor in state.items()}, TOY, "here")


def test_misfits_are_listed_by_kind_three_each():
    state = ones()
    for name in ("norm.bias", "mask_token", "blocks.1.ls1.gamma", "blocks.1.ls2.gamma"):
        del state[name]
    state["head.weight"] = torch.ones(5)
    state["pos_embed"] = torch.ones(1, 257, 64)
    with pytest.raises(WeightsError) as caught:
        check_state_dict(state, TOY, "my.pth")
    assert str(caught.value) == (
        "my.pth does not fit dinov2_vits14: "
        "missing mask_token, blocks.1.ls1.gamma, blocks.1.ls2.gamma and 1 more; "
        "unexpected head.weight; "
        "misshapen pos_embed (1, 257, 64) instead of (1, 1370, 64); "
        "it fits none of the eight variants; ask for auto, which reads the architecture from it"
    )


@pytest.mark.parametrize("actual", ["dinov2_vitb14", "dinov2_vits14_reg", "dinov2_vitg14_reg"])
def test_weights_of_another_variant_are_recognised(actual):
    with pytest.raises(WeightsError, match=f"it fits {actual}, so ask for that variant$"):
        check_state_dict(shapes_only(actual), find_variant("dinov2_vits14"), "my.pth")


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(64, dtype=torch.int8), "is torch.int8 "),
        (torch.ones(64).to_sparse(), "is torch.float32 .*torch.sparse_coo"),
        (torch.ones(64, device="meta"), "is torch.float32 .*on meta"),
        (torch.full((64,), math.nan), "holds values that are not finite"),
        (torch.full((64,), 1e300, dtype=torch.float64), "holds values that are not finite"),
    ],
)
def test_tensors_that_cannot_be_weights_are_refused_by_name(tensor, reason):
    with pytest.raises(WeightsError, match=rf"^my.pth: blocks.1.ls1.gamma {reason}[^\n]*$"):
        check_state_dict({**ones(), "blocks.1.ls1.gamma": tensor}, TOY, "my.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(dtype):
    values = torch.tensor([[0.5, -1.25], [3.0, 1024.0]])
    converted = to_float32({"a": values.to(dtype).T})["a"]
    assert converted.dtype is torch.float32
    assert converted.is_contiguous()
    assert torch.equal(converted, values.T)


def test_float32_is_not_copied_and_carries_no_gradient():
    parameter = torch.nn.Parameter(torch.ones(3))
    converted = to_float32({"a": parameter})["a"]
    assert converted.data_ptr() == parameter.data_ptr()
    assert not converted.requires_grad


def test_sha256_covers_names_shapes_and_bytes_in_order_of_names():
    state = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor([0.5])}
    by_hand = b"a (1,)\n" + b"\x00\x00\x00\x3f" + b"b (1, 2)\n" + b"\0\0\x80\x3f\0\0\0\x40"
    assert state_dict_sha256(state) == hashlib.sha256(by_hand).hexdigest()


def test_entries_below_a_prefix_leave_the_others_out():
    a, b = torch.ones(1), torch.ones(2)
    assert entries_below({"module.a": a, "head": b}, "module.") == {"a": a}
    assert entries_below({"a": a, "head": b}, "module.") == {"a": a, "head": b}
