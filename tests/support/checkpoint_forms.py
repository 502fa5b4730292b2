"""Every form of a checkpoint that the field has, generated from one small backbone.

A form is names × wrappers × nesting × container × type of the numbers. `forms()` crosses them in
three planes, each of which varies two or three and leaves the others plain.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]

WIDTH, HIDDEN, DEPTH, SIDE, REGISTERS = 64, 128, 2, 4, 4


def plain_state(*, registers: bool = False, swiglu: bool = False) -> State:
    """A backbone under official names, of random values."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    state = {"cls_token": draw(1, 1, WIDTH), "pos_embed": draw(1, 1 + SIDE**2, WIDTH)}
    if registers:
        state["register_tokens"] = draw(1, REGISTERS, WIDTH)
    state["mask_token"] = draw(1, WIDTH)
    shapes = {"patch_embed.proj": (WIDTH, 3, 14, 14)}
    ffn = ("w12", "w3", 2 * HIDDEN) if swiglu else ("fc1", "fc2", HIDDEN)
    for index in range(DEPTH):
        block = f"blocks.{index}"
        shapes |= {f"{block}.norm1": (WIDTH,), f"{block}.attn.qkv": (3 * WIDTH, WIDTH)}
        shapes |= {f"{block}.attn.proj": (WIDTH, WIDTH), f"{block}.norm2": (WIDTH,)}
        shapes[f"{block}.mlp.{ffn[0]}"] = (ffn[2], WIDTH)
        shapes[f"{block}.mlp.{ffn[1]}"] = (WIDTH, HIDDEN)
        state |= {f"{block}.ls{n}.gamma": draw(WIDTH) for n in (1, 2)}
    shapes["norm"] = (WIDTH,)
    for name, shape in shapes.items():
        state |= {f"{name}.weight": draw(shape), f"{name}.bias": draw(shape[0])}
    return state


def below(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def renamed(*pairs: tuple[str, str]) -> Callable[[State], State]:
    def rename(state: State) -> State:
        found = {}
        for name, tensor in state.items():
            for old, new in pairs:
                name = name.replace(old, new)
            found[name] = tensor
        return found

    return rename


def chunked(count: int) -> Callable[[State], State]:
    """Blocks as fully sharded training names them, in `count` chunks."""

    def chunk(match: re.Match[str]) -> str:
        return f"blocks.{int(match[1]) * count // DEPTH}.{match[1]}."

    return lambda state: {
        re.sub(r"^blocks\.(\d+)\.", chunk, name): tensor for name, tensor in state.items()
    }


def of_transformers(state: State, *, version: int = 4) -> State:
    old, new = ({"q": "attention.query", "k": "attention.key", "v": "attention.value"}, {})
    new = {part: f"{part}_proj" for part in "qkv"}
    names = old if version == 4 else new
    split: State = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                split[name.replace("attn.qkv", f"attention.{names[part]}")] = rows.contiguous()
        elif ".mlp.w12." in name and version == 5:
            for part, rows in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
                split[name.replace("w12", part)] = rows.contiguous()
        else:
            split[name] = tensor
    return renamed(
        ("cls_token", "embeddings.cls_token"),
        ("mask_token", "embeddings.mask_token"),
        ("register_tokens", "embeddings.register_tokens"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("blocks.", "encoder.layer."),
        ("attn.proj", "attention.output.dense" if version == 4 else "attention.o_proj"),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("mlp.w12", "mlp.weights_in"),
        ("mlp.w3", "mlp.weights_out" if version == 4 else "mlp.down_proj"),
    )({("layernorm" + n[4:] if n.startswith("norm.") else n): t for n, t in split.items()})


def of_timm(state: State) -> State:
    """Without a mask token; SwiGLU packed."""
    state = renamed(("mlp.w12", "mlp.fc1"), ("mlp.w3", "mlp.fc2"))(state)
    return {name: tensor for name, tensor in state.items() if name != "mask_token"}


def of_timm_swiglu(state: State) -> State:
    """Without a mask token; SwiGLU as two layers."""
    split: State = {}
    for name, tensor in of_timm(state).items():
        if ".mlp.fc1." in name:
            for part, rows in zip(("fc1_g", "fc1_x"), tensor.chunk(2), strict=True):
                split[name.replace("fc1", part)] = rows.contiguous()
        else:
            split[name] = tensor
    return split


def of_timm_registers(state: State) -> State:
    """The position of CLS folded into `cls_token`, as timm converts the official models."""
    state = renamed(("register_tokens", "reg_token"))(of_timm(state))
    table = state["pos_embed"]
    return state | {"cls_token": state["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}


def of_timm_register_rows(state: State) -> State:
    """Rows for the registers in the table, as models that were trained in timm have."""
    state = renamed(("register_tokens", "reg_token"))(of_timm(state))
    table, rows = state["pos_embed"], torch.full((1, REGISTERS, WIDTH), 0.25)
    return state | {"pos_embed": torch.cat((table[:, :1], rows, table[:, 1:]), dim=1)}


def no_mask(state: State) -> State:
    return state | {"mask_token": torch.zeros(1, WIDTH)}


def folded(state: State) -> State:
    table = state["pos_embed"]
    row = torch.zeros_like(table[:, :1])
    table = torch.cat((row, table[:, 1:]), dim=1)
    return no_mask(state) | {
        "cls_token": state["cls_token"] + state["pos_embed"][:, :1],
        "pos_embed": table,
    }


def raised_registers(state: State) -> State:
    return no_mask(state) | {"register_tokens": state["register_tokens"] + 0.25}


def same(state: State) -> State:
    return state


@dataclass(frozen=True)
class Names:
    """Whose names: from the plain form to theirs, and what they must become again."""

    write: Callable[[State], State] = same
    expected: Callable[[State], State] = same
    kind: dict[str, bool] = field(default_factory=dict)


R, G = {"registers": True}, {"swiglu": True}
NAMES = {
    "official": Names(),
    "official-registers": Names(kind=R),
    "official-swiglu": Names(kind=G),
    "chunked-1": Names(chunked(1)),
    "chunked-2": Names(chunked(2)),
    "transformers-4": Names(of_transformers),
    "transformers-4-registers": Names(of_transformers, kind=R),
    "transformers-4-swiglu": Names(of_transformers, kind=G),
    "transformers-5": Names(partial(of_transformers, version=5)),
    "transformers-5-swiglu": Names(partial(of_transformers, version=5), kind=G),
    "timm": Names(of_timm, no_mask),
    "timm-packed-swiglu": Names(of_timm, no_mask, G),
    "timm-swiglu": Names(of_timm_swiglu, no_mask, G),
    "timm-registers": Names(of_timm_registers, folded, R),
    "timm-register-rows": Names(of_timm_register_rows, raised_registers, R),
    "three-axes": Names(lambda state: state | {"mask_token": state["mask_token"][None]}),
    "two-axes": Names(lambda state: state | {"cls_token": state["cls_token"][0]}),
}

INNER = renamed(
    ("blocks.", "blocks._fsdp_wrapped_module."),
    ("encoder.layer.", "encoder._orig_mod.layer."),
    ("mlp.", "_checkpoint_wrapped_module.mlp."),
)
WRAPPERS: dict[str, Callable[[State], State]] = {
    "bare": same,
    "module": below("module."),
    "compiled": below("_orig_mod."),
    "module-compiled": below("module._orig_mod."),
    "compiled-module": below("_orig_mod.module."),
    "inner": INNER,
    "model": below("model."),
    "peft-merged": below("base_model.model."),
    "backbone": below("backbone."),
    "depth-anything": below("pretrained."),
    "deep": below("module.net.encoder._orig_mod.vit.model."),
}

HEADS = {"dino_head.mlp.0.weight": torch.ones(7, 3), "ibot_head.last_layer.weight_v": torch.ones(7)}


def other(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


def averaged(state: State) -> Any:
    return {"model": other(state), "model_ema": below("module.")(state), "epoch": 3}


NESTINGS: dict[str, Callable[[State], Any]] = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "global_step": 100},
    "model": lambda state: {"model": state, "name": "x"},
    "list": lambda state: [state, 3],
    "with-optimizer": lambda state: {
        "net": below("vit.")(state),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "official-teacher": lambda state: {"teacher": below("backbone.")(state) | HEADS},
    "official-model-final": lambda state: {
        "model": {
            **below("student.backbone.")(other(state)),
            **below("teacher.backbone.")(state),
            **below("teacher.")(HEADS),
        },
        "iteration": 1249,
    },
    "dino": lambda state: {"student": other(state), "teacher": state},
    "lightly": lambda state: {
        "state_dict": below("student_backbone.model.")(other(state))
        | below("teacher_backbone.model.")(state)
    },
    "ema": averaged,
    "timm-ema": lambda state: {"state_dict": other(state), "state_dict_ema": state},
    "classifier": lambda state: below("dinov2.")(state) | {"classifier.weight": torch.ones(5, 64)},
}


def as_pickle(state: Any, folder: Path, *, name: str, zipped: bool = True) -> Path:
    torch.save(state, folder / name, _use_new_zipfile_serialization=zipped)
    return folder / name


def as_safetensors(state: State, folder: Path, *, name: str = "weights.safetensors") -> Path:
    save_file({key: value.contiguous().clone() for key, value in state.items()}, folder / name)
    return folder / name


def in_folder(write: Callable[..., Path], name: str) -> Callable[[Any, Path], Path]:
    def written(state: Any, folder: Path) -> Path:
        write(state, folder, name=name)
        return folder

    return written


def in_shards(write: Callable[..., Path], suffix: str) -> Callable[[Any, Path], Path]:
    def written(state: State, folder: Path) -> Path:
        stem, index = suffix.split(".")[0], {}
        for shard in range(3):
            part = dict(list(state.items())[shard::3])
            file = f"{stem}-0000{shard + 1}-of-00003.{suffix.split('.')[1]}"
            write(part, folder, name=file)
            index |= dict.fromkeys(part, file)
        (folder / f"{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
        return folder

    return written


CONTAINERS: dict[str, Callable[[Any, Path], Path]] = {
    "pth": partial(as_pickle, name="w.pth"),
    "legacy-pth": partial(as_pickle, name="w.pth", zipped=False),
    "pt": partial(as_pickle, name="w.pt"),
    "ckpt": partial(as_pickle, name="w.ckpt"),
    "bin": partial(as_pickle, name="w.bin"),
    "folder-bin": in_folder(as_pickle, "pytorch_model.bin"),
    "folder-ckpt": in_folder(as_pickle, "epoch=3-step=100.ckpt"),
    "safetensors": as_safetensors,
    "folder-safetensors": in_folder(as_safetensors, "model.safetensors"),
    "shards-safetensors": in_shards(as_safetensors, "model.safetensors"),
    "shards-bin": in_shards(as_pickle, "pytorch_model.bin"),
}
NESTING_CONTAINERS = ("pth", "legacy-pth", "ckpt", "folder-bin")
TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Form:
    """One form: what it is called, and how it is written."""

    names: str = "official"
    wrapper: str = "bare"
    nesting: str | None = None
    container: str = "safetensors"
    dtype: str = "float32"

    def __str__(self) -> str:
        parts = (self.names, self.wrapper, self.nesting, self.container, self.dtype)
        return "+".join(part for part in parts if part)

    def write(self, folder: Path) -> tuple[Path, State]:
        """Write it into `folder`.

        Returns:
            Its place, and the official float32 state dict that it must become.
        """
        names = NAMES[self.names]
        state = {k: v.to(TYPES[self.dtype]) for k, v in plain_state(**names.kind).items()}
        theirs: Any = WRAPPERS[self.wrapper](names.write(state))
        if self.nesting is not None:
            theirs = NESTINGS[self.nesting](theirs)
        place = CONTAINERS[self.container](theirs, folder)
        expected = names.expected(state)
        return place, {name: tensor.float() for name, tensor in expected.items()}


def forms() -> Iterator[Form]:
    for names in NAMES:
        yield Form(names)
    for names, wrapper in itertools.product(NAMES, ("inner", "deep")):
        yield Form(names, wrapper, container="pth")
    for names, wrapper in itertools.product(("official", "transformers-5"), WRAPPERS):
        yield Form(names, wrapper, container="pt")
    for nesting, container in itertools.product(NESTINGS, NESTING_CONTAINERS):
        yield Form("official-registers", nesting=nesting, container=container)
    for container, dtype in itertools.product(CONTAINERS, TYPES):
        yield Form("transformers-4", "model", container=container, dtype=dtype)
    for nesting, wrapper in itertools.product(NESTINGS, ("module", "compiled")):
        yield Form("timm", wrapper, nesting, "pth")
