"""From `--head NAME=SOURCE` to a checked eager head."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import sha256_of
from dinov2rt.bundle.heads import OFFICIAL_HEADS, Decoder, HeadEntry, HeadSpec, Task, output_of
from dinov2rt.bundle.variants import name_of, variant_of
from dinov2rt.errors import InputError, WeightsError
from dinov2rt.export.heads.eager import BinDepth, Classifier, DptDepth, PixelClassifier
from dinov2rt.export.heads.own import OWN_HEADS, load_own
from dinov2rt.export.heads.readers import StateDict, read_head
from dinov2rt.export.heads.synthetic import synthetic_head
from dinov2rt.export.weights.official import BASE_URL, download_once
from dinov2rt.export.weights.state_dict import state_dict_sha256

_SYNTHETIC = "synthetic:"


@dataclass(frozen=True, slots=True)
class HeadSource:
    """A head that is asked for, and where its weights are."""

    name: str
    source: str = "official"

    @classmethod
    def parse_all(cls, text: str) -> "tuple[HeadSource, ...]":
        """Heads from "nyu-dpt,linear=head.pth,ade20k-ms=synthetic:0".

        Raises:
            InputError: an unknown name, or one of them twice.
        """
        pairs = [part.strip().partition("=") for part in text.split(",")]
        heads = tuple(cls(name, source or "official") for name, _, source in pairs)
        for head in heads:
            if head.name not in OFFICIAL_HEADS and head.name not in OWN_HEADS:
                own = " and ".join(f"{name}=FILE" for name in OWN_HEADS)
                raise InputError(
                    f"unknown head {head.name!r}; allowed are {', '.join(OFFICIAL_HEADS)}, and "
                    f"{own} for your own"
                )
        if len({head.name for head in heads}) < len(heads):
            raise InputError(f"heads {text!r}; each can be given once")
        return heads

    def __str__(self) -> str:
        return self.name if self.source == "official" else f"{self.name}={self.source}"


@dataclass(frozen=True, slots=True, eq=False)
class EagerHead:
    """A head with its weights: `entry` says what it reads and returns."""

    spec: HeadSpec
    entry: HeadEntry
    module: nn.Module


def load_heads(
    sources: tuple[HeadSource, ...], architecture: Architecture
) -> tuple[EagerHead, ...]:
    """Every head with its weights, downloaded if need be.

    Raises:
        InputError: a head that does not go with `architecture`.
        WeightsError: weights that cannot be had, cannot be read, or do not fit.
    """
    loaded = [_load(source, architecture) for source in sources]
    tasks = [head.spec.task for head in loaded]
    return tuple(_named(head, tasks) for head in loaded)


def _named(head: EagerHead, tasks: list[Task]) -> EagerHead:
    output = output_of(head.spec.task, head.spec.infix, tasks)
    return replace(head, entry=replace(head.entry, output=output))


def _load(source: HeadSource, architecture: Architecture) -> EagerHead:
    if source.name in OWN_HEADS:
        return EagerHead(*load_own(source.name, source.source, architecture))
    spec = OFFICIAL_HEADS[source.name]
    spec.check(architecture)
    layers = spec.layers_of(architecture)
    module = module_of_spec(spec, architecture)
    shapes = {key: tuple(value.shape) for key, value in file_keys(spec, module).items()}
    state, sha256 = _state(source.source, spec, architecture, shapes)
    _check(state, shapes, spec, architecture, source.source)
    _assign(module, state, spec)
    entry = HeadEntry(
        name=spec.name,
        task=spec.task,
        decoder=spec.decoder,
        data=spec.data,
        output=str(spec.task),
        source=source.source,
        sha256=sha256,
        layers=layers,
        num_classes=spec.num_classes,
        depth_range=spec.depth_range,
    )
    return EagerHead(spec, entry, module)


def module_of_spec(spec: HeadSpec, architecture: Architecture) -> nn.Module:
    """The module of an official head, without weights."""
    dim = architecture.embed_dim
    with torch.device("meta"):
        if spec.decoder is Decoder.CLASSIFIER:
            return Classifier((spec.num_layers + 1) * dim, spec.num_classes or 0)
        if spec.decoder is Decoder.PIXELS:
            return PixelClassifier(spec.num_layers * dim, spec.num_classes or 0)
        if spec.depth_range is None:
            raise ValueError(f"{spec.name} has no range")
        if spec.decoder is Decoder.DPT:
            return DptDepth(dim, spec.depth_range)
        return BinDepth(2 * spec.num_layers * dim, spec.depth_range)


def file_keys(spec: HeadSpec, module: nn.Module) -> StateDict:
    """The module's tensors under the names that they have in a file."""
    return {_prefix(spec) + key: value for key, value in module.state_dict().items()}


def official_head_url(spec: HeadSpec, architecture: Architecture) -> str:
    """The URL of the weights of an official head.

    Source: `dinov2/hub/classifiers.py` and `dinov2/hub/depthers.py`.
    """
    variant = variant_of(architecture)
    if variant is None:
        raise InputError(
            f"official heads exist for the variants only, and this is {architecture.label}; give a "
            f"file of its own: --head {spec.name}=FILE"
        )
    folder = variant.name.removesuffix("_reg")
    registers = f"_reg{architecture.num_registers}" if architecture.num_registers else ""
    return f"{BASE_URL}/{folder}/{folder}{registers}_{spec.infix}_head.pth"


def _prefix(spec: HeadSpec) -> str:
    return "" if spec.decoder is Decoder.CLASSIFIER else "decode_head."


def _state(
    source: str, spec: HeadSpec, architecture: Architecture, shapes: dict[str, tuple[int, ...]]
) -> tuple[StateDict, str]:
    """The tensors, and a SHA-256 of the file, or of all tensors if they come from no file."""
    if source.startswith(_SYNTHETIC):
        arrays = synthetic_head(spec, architecture.embed_dim, shapes, _seed(source))
        state = {key: torch.from_numpy(array) for key, array in arrays.items()}
        return state, state_dict_sha256(state)
    if source == "official":
        path = download_once(
            official_head_url(spec, architecture), f"--head {spec.name}=synthetic:0"
        )
    else:
        path = Path(source)
        if not path.is_file():
            raise WeightsError(
                f"head {spec.name}: {source!r} is no file; allowed are official, synthetic:SEED, "
                "and a .pth, .pt or .safetensors file"
            )
    return read_head(path), sha256_of(path)


def _seed(source: str) -> int:
    match = re.fullmatch("synthetic:([0-9]{1,18})", source)
    if match is None:
        raise WeightsError(
            f"head weights {source!r} name no seed; allowed is synthetic:SEED, e.g. synthetic:0"
        )
    return int(match[1])


def _check(
    state: StateDict,
    shapes: dict[str, tuple[int, ...]],
    spec: HeadSpec,
    architecture: Architecture,
    source: str,
) -> None:
    """Exactly these keys and shapes: the hub loads such files with `strict=False`."""
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    missing, unknown = sorted(shapes.keys() - found), sorted(found.keys() - shapes)
    if missing or unknown:
        raise WeightsError(
            f"{source} is no {spec.name} head: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}), {len(unknown)} are unknown ({', '.join(unknown[:3])})"
        )
    for key, shape in shapes.items():
        if found[key] != shape:
            raise WeightsError(
                f"{source} is no {spec.name} head of {name_of(architecture)}: {key} has shape "
                f"{list(found[key])}, must be {list(shape)}"
            )


def _assign(module: nn.Module, state: StateDict, spec: HeadSpec) -> None:
    prefix = _prefix(spec)
    own = {
        key.removeprefix(prefix): value if value.dtype == torch.int64 else value.float()
        for key, value in state.items()
    }
    for key, value in own.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"head {spec.name}: {key} holds NaN or infinity; get the file again")
    module.load_state_dict(own, strict=True, assign=True)
    module.eval().requires_grad_(False)
