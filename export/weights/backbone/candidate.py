"""One prefix in a checkpoint, and whether the names below it make a whole backbone."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dinov2rt.export.weights.backbone.names import FUSED, Naming, official_name
from dinov2rt.export.weights.backbone.refusals import refusal_of
from dinov2rt.export.weights.state_dict import first_few

RawNames = tuple[str, ...]
"""Names in the file that become one name; more than one is a fault."""

_KINDS = ("weight", "bias")
_TOP = frozenset({"cls_token", "pos_embed"}) | {
    f"{module}.{kind}" for module in ("patch_embed.proj", "norm") for kind in _KINDS
}
_TOP_OPTIONAL = frozenset({"register_tokens", "mask_token"})
_BLOCK = frozenset({"attn.qkv.weight"}) | {
    f"{module}.{kind}" for module in ("norm1", "attn.proj", "norm2") for kind in _KINDS
}
_BLOCK_OPTIONAL = frozenset({"attn.qkv.bias", "ls1.gamma", "ls2.gamma"})
_MLP, _SWIGLU = (
    frozenset(f"mlp.{layer}.{kind}" for layer in layers for kind in _KINDS)
    for layers in (("fc1", "fc2"), ("w12", "w3"))
)

_OWN = {module.partition(".")[0] for module in _TOP | _TOP_OPTIONAL} | {"blocks"}
_MODULES = {
    Naming.OFFICIAL: _OWN | {"norm_pre", "fc_norm", "dist_token", "rope_embed"},
    Naming.TRANSFORMERS: _OWN | {"embeddings", "encoder", "layernorm"},
}
"""Names that begin with one of these belong to a backbone, and an unknown one would change it."""

_IN_BLOCK = re.compile(r"^blocks\.(0|[1-9]\d{0,5})\.(.+)$")
_ROLES = ("teacher", "student")
_AVERAGED = frozenset({"ema", "momentum", "averaged", "swa", "target"})


@dataclass(frozen=True, slots=True)
class BackboneCandidate:
    """A prefix below which there may be a backbone.

    `parts` maps official names to the tensors that are joined to one, each with all its raw names.
    `fault` says why this is no backbone that can be exported.
    """

    prefix: str
    naming: Naming
    parts: dict[str, tuple[RawNames, ...]]
    fault: str | None

    def beats(self, other: "BackboneCandidate") -> bool:
        """Whether training meant this one to be kept: the teacher, and the average of weights."""
        mine, others = self._words(), other._words()
        if _role(mine) != _role(others):
            return _role(mine) == "teacher" and _role(others) == "student"
        return bool(mine & _AVERAGED) and not others & _AVERAGED

    def _words(self) -> frozenset[str]:
        return frozenset(re.split(r"[._]", self.prefix.lower()))


def candidate_at(prefix: str, naming: Naming, names: Mapping[str, RawNames]) -> BackboneCandidate:
    """The tensors below `prefix`; `names` are a checkpoint's, without the segments of wrappers."""
    found: dict[str, RawNames] = defaultdict(tuple)
    for name, raw_names in names.items():
        if name.startswith(prefix):
            found[official_name(name[len(prefix) :], naming)] += raw_names
    parts = {
        name: raw
        for name, raw in _joined(_with_official_swiglu(found)).items()
        if name.partition(".")[0] in _MODULES[naming]
    }
    return BackboneCandidate(prefix, _refined(naming, names, prefix), parts, _fault(prefix, parts))


def _refined(naming: Naming, names: Mapping[str, RawNames], prefix: str) -> Naming:
    of_timm = (f"{prefix}reg_token", f"{prefix}blocks.0.mlp.fc1_g.weight")
    return Naming.TIMM if any(name in names for name in of_timm) else naming


def _role(words: Collection[str]) -> str | None:
    return next((role for role in _ROLES if role in words), None)


def _with_official_swiglu(names: dict[str, RawNames]) -> dict[str, RawNames]:
    if not any(".mlp.w1." in name for name in names):
        return names
    return {name.replace(".mlp.fc2.", ".mlp.w3."): raw for name, raw in names.items()}


def _joined(names: dict[str, RawNames]) -> dict[str, tuple[RawNames, ...]]:
    """The names with the parts of each fused projection under one; incomplete ones stay."""
    joined: dict[str, tuple[RawNames, ...]] = {name: (raw,) for name, raw in names.items()}
    for fused, pieces in FUSED.items():
        for first in [name for name in names if pieces[0] in name]:
            group = [first.replace(pieces[0], piece) for piece in pieces]
            if all(name in names for name in group):
                together = joined.get(first.replace(pieces[0], fused), ())
                parts = tuple(joined.pop(name)[0] for name in group)
                joined[first.replace(pieces[0], fused)] = together + parts
    return joined


def _fault(prefix: str, parts: Mapping[str, tuple[RawNames, ...]]) -> str | None:
    """Why this is no backbone that can be exported; None if it is one."""
    problems = {"missing": _missing(parts), "unexpected": _unexpected(parts)}
    raw_names = [raw for group in parts.values() for raw in group]
    if any(problems.values()):
        if cause := refusal_of(name for raw in raw_names for name in raw):
            return f"holds {cause}"
        where = f" below {prefix.rstrip('.')!r}" if prefix else ""
        text = "; ".join(f"{kind} {first_few(names)}" for kind, names in problems.items() if names)
        return f"holds no whole DINOv2 backbone{where}: {text}; give a checkpoint that has one"
    twice = next((raw for raw in raw_names if len(raw) > 1), None)
    if twice is not None:
        return f"holds tensors that have one name in the model: {first_few(twice)}; keep one"
    return None


def _missing(names: Collection[str]) -> list[str]:
    """Names that are missing: from the model, and from blocks that lack a name of other blocks."""
    blocks: dict[int, set[str]] = defaultdict(set)
    for match in filter(None, map(_IN_BLOCK.match, names)):
        blocks[int(match[1])].add(match[2])
    kinds = set[str]().union(*blocks.values())
    expected = _BLOCK | _ffn(kinds) | (kinds & _BLOCK_OPTIONAL)
    missing = sorted(_TOP - set(names))
    for index in range(max(blocks, default=0) + 1):
        if index not in blocks:
            return [*missing, f"blocks.{index}"]
        missing += sorted(f"blocks.{index}.{kind}" for kind in expected - blocks[index])
    return missing


def _unexpected(names: Collection[str]) -> list[str]:
    matches = {name: _IN_BLOCK.match(name) for name in names}
    kinds = {match[2] for match in matches.values() if match}
    known = _BLOCK | _BLOCK_OPTIONAL | _ffn(kinds)
    return sorted(
        name
        for name, match in matches.items()
        if name not in _TOP | _TOP_OPTIONAL and not (match and match[2] in known)
    )


def _ffn(kinds: Collection[str]) -> frozenset[str]:
    return _SWIGLU if any(kind in _SWIGLU for kind in kinds) else _MLP
