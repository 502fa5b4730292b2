"""Families of models that are DINOv2 in all but size: one form of two narrow blocks for each.

A form has the family's configuration at a reduced width, in the names and beside the files that
the family is published in. Its features are those of a second implementation,
`support/naive_vit.py`. Sources of the configurations: docs/checkpoints.md.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import checkpoint_forms, naive_vit
from support.eager_tokens import eager_tokens
from support.float32_graph import Float32Graph

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.export.weights.architecture import Stated
from dinov2rt.export.weights.checkpoint import Weights, load_weights
from dinov2rt.export.weights.synthetic import synthetic_state_dict

State = dict[str, torch.Tensor]

BASE = Architecture(
    embed_dim=128,
    depth=2,
    num_heads=2,
    ffn="mlp",
    hidden_dim=512,
    patch_size=14,
    num_registers=0,
    native_grid=Grid(16, 16),
    antialias=False,
    offset=0.1,
    normalization=IMAGENET,
    layer_scale=True,
    qkv_bias=True,
)
OPTIMUS = Normalization((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU = Normalization((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
RAD = Normalization((0.5307,) * 3, (0.2583,) * 3)


def registers(count: int, **facts: Any) -> Architecture:
    return dataclasses.replace(BASE, num_registers=count, antialias=True, offset=0.0, **facts)


def of_timm(state: State) -> State:
    return checkpoint_forms.renamed(("register_tokens", "reg_token"))(
        checkpoint_forms.of_timm(state)
    )


def without_row_for_cls(state: State) -> State:
    """`no_embed_class`: no position for CLS, which is zero in the official table then."""
    return of_timm(state) | {"pos_embed": state["pos_embed"][:, 1:]}


def with_rows_for_registers(state: State) -> State:
    """Registers hold what the table does not add to them."""
    table, raised = state["pos_embed"], of_timm(state)
    rows = torch.full_like(raised["reg_token"], 0.25)
    return raised | {
        "pos_embed": torch.cat((table[:, :1], rows, table[:, 1:]), dim=1),
        "reg_token": raised["reg_token"] - rows,
    }


def of_timms_config(name: str, normalization: Normalization | None = None, **arguments: Any) -> Any:
    statistics = dataclasses.asdict(normalization) if normalization else {}
    pretrained = {"input_size": [3, 224, 224], "crop_pct": 1.0, **statistics}
    return {"architecture": name, "model_args": arguments, "pretrained_cfg": pretrained}


def of_a_processor(normalization: Normalization, side: int) -> Any:
    return {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": list(normalization.mean),
        "image_std": list(normalization.std),
    }


def of_transformers_config(architecture: Architecture) -> Any:
    return {
        "model_type": "dinov2",
        "num_attention_heads": architecture.num_heads,
        "image_size": architecture.native_size.height,
        "patch_size": architecture.patch_size,
        "hidden_size": architecture.embed_dim,
        "num_hidden_layers": architecture.depth,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "use_swiglu_ffn": False,
    }


@dataclasses.dataclass(frozen=True)
class Family:
    """What is published, in small: tensors, files beside them, and the interpolation."""

    architecture: Architecture
    write: Callable[[State], State] = checkpoint_forms.of_transformers
    files: dict[str, Any] = dataclasses.field(default_factory=dict)
    follows_source: bool | None = None
    has_cls_position: bool = True


PHIKON = dataclasses.replace(BASE, patch_size=16, native_grid=Grid(14, 14), offset=0.0)
FAMILIES = {
    "h_optimus": Family(
        registers(4, ffn="swiglu", hidden_dim=344, normalization=OPTIMUS),
        without_row_for_cls,
        {"config.json": of_timms_config("vit_giant_patch14_reg4_dinov2", OPTIMUS, reg_tokens=4)},
        has_cls_position=False,
    ),
    "uni2_h": Family(
        registers(8, ffn="swiglu", hidden_dim=344),
        without_row_for_cls,
        {"config.json": of_timms_config("vit_giant_patch14_224", num_heads=2, reg_tokens=8)},
        has_cls_position=False,
    ),
    "virchow2": Family(
        registers(4, embed_dim=160, ffn="swiglu", hidden_dim=427),  # heads of 80, MLP of 2.66875
        with_rows_for_registers,
        {"config.json": of_timms_config("vit_huge_patch14_224", num_heads=2, reg_tokens=4)},
    ),
    "hibou": Family(
        registers(4, normalization=HIBOU),
        files={"preprocessor_config.json": of_a_processor(HIBOU, 224)},
    ),
    "phikon_v2": Family(
        PHIKON,
        files={
            "config.json": of_transformers_config(PHIKON),
            "preprocessor_config.json": of_a_processor(IMAGENET, 224),
        },
        follows_source=True,
    ),
    "rad_dino": Family(
        dataclasses.replace(BASE, native_grid=Grid(37, 37), normalization=RAD),
        files={"preprocessor_config.json": of_a_processor(RAD, 518)},
    ),
}


@pytest.fixture(params=FAMILIES)
def read(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, State, Weights]:
    """A family, its official state dict, and what is read of what is published."""
    family = FAMILIES[request.param]
    state = synthetic_state_dict(family.architecture, 0)
    if not family.has_cls_position:
        state["pos_embed"][:, 0] = 0
    tensors = {k: v.contiguous() for k, v in family.write(state).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    for file, config in family.files.items():
        (tmp_path / file).write_text(json.dumps(config))
    stated = Stated(follows_source=family.follows_source)
    return request.param, state, load_weights(str(tmp_path), None, None, stated)


def test_a_family_is_read_and_computes_what_a_second_implementation_does(
    read: tuple[str, State, Weights],
) -> None:
    name, state, loaded = read
    family = FAMILIES[name]
    assert loaded.architecture == family.architecture
    side = 518 if name == "rad_dino" else 224
    crop = "floor-crop" if "preprocessor_config.json" in family.files else "crop"
    assert loaded.preprocess == f"short-side:{side},{crop}:{side}"
    pixels = some_pixels(2, 61, 90)
    found = eager_tokens(loaded.architecture, loaded.state_dict, pixels)
    naive_vit.assert_same(found, family.architecture, naive_vit.in_float64(state), pixels)


@pytest.mark.slow
def test_its_graph_does_as_well(read: tuple[str, State, Weights], tmp_path: Path) -> None:
    _, state, loaded = read
    graph = Float32Graph(loaded.architecture, loaded.state_dict, tmp_path)
    native = loaded.architecture.native_size
    for shape in ((2, 61, 90), (1, native.height, native.width)):
        pixels = some_pixels(*shape)
        exact = naive_vit.in_float64(state)
        naive_vit.assert_same(graph(pixels), loaded.architecture, exact, pixels)


def some_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
