"""Finds the backbone in a checkpoint, by names alone.

A training checkpoint also holds heads, a student, averaged weights and an optimiser. A backbone is
a set of names, complete, below one prefix.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dinov2rt.bundle.entries import describe_groups
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.backbone.candidate import BackboneCandidate, candidate_at
from dinov2rt.export.weights.backbone.names import ANCHORS, Naming, without_wrappers
from dinov2rt.export.weights.backbone.refusals import refusal_of
from dinov2rt.export.weights.state_dict import first_few


@dataclass(frozen=True, slots=True)
class Backbone:
    """A backbone within a checkpoint.

    `parts` maps each official name to the names of the tensors that it is made of, whose rows
    belong below one another. `left_out` counts the other tensors of the checkpoint, by the module
    that they are in.
    """

    prefix: str
    naming: Naming
    parts: dict[str, tuple[str, ...]]
    left_out: dict[str, int]


def find_backbone(names: Iterable[str], source: str, prefix: str | None = None) -> Backbone:
    """The backbone among tensors of these `names`.

    Of several, the teacher is taken before the student, and an average of weights (EMA) before
    what it averages.

    Args:
        names: the names of all tensors in the checkpoint; nested parts are joined by dots.
        source: the checkpoint, for messages.
        prefix: where to look; None looks everywhere.

    Raises:
        WeightsError: there is no backbone, it is incomplete or not a plain DINOv2, several have one
            rank, or two names become one. The message begins with `source`.
    """
    raw_names = tuple(names)
    candidates = list(_candidates(raw_names))
    if not candidates:
        raise _no_backbone(raw_names, source)
    chosen = _best(_at_or_below(prefix, candidates, source), source)
    if chosen.fault is not None:
        raise WeightsError(f"{source} {chosen.fault}")
    parts = {name: tuple(raw for (raw,) in found) for name, found in chosen.parts.items()}
    used = {raw for found in parts.values() for raw in found}
    left_out = _groups((name for name in raw_names if name not in used), chosen.prefix)
    return Backbone(chosen.prefix.rstrip("."), chosen.naming, parts, left_out)


def _candidates(raw_names: Iterable[str]) -> Iterator[BackboneCandidate]:
    clean: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for name in raw_names:
        clean[without_wrappers(name)] += (name,)
    for name in clean:
        for anchor, naming in ANCHORS.items():
            prefix = name.removesuffix(anchor)
            if prefix != name and (not prefix or prefix.endswith(".")):
                yield candidate_at(prefix, naming, clean)


def _at_or_below(
    prefix: str | None, candidates: Sequence[BackboneCandidate], source: str
) -> Sequence[BackboneCandidate]:
    if prefix is None:
        return candidates
    wanted = f"{without_wrappers(prefix.strip('.'))}.".lstrip(".")
    exact = [each for each in candidates if each.prefix == wanted]
    below = exact or [each for each in candidates if wanted and each.prefix.startswith(wanted)]
    if not below:
        raise WeightsError(
            f"{source} holds no backbone below {prefix!r}; --prefix can be {_listed(candidates)}"
        )
    return below


def _best(candidates: Sequence[BackboneCandidate], source: str) -> BackboneCandidate:
    """The candidate that no other beats; among several, the complete one."""
    leading = [each for each in candidates if not any(other.beats(each) for other in candidates)]
    whole = [each for each in leading if each.fault is None]
    if len(whole) > 1:
        raise WeightsError(
            f"{source} holds several backbones; choose one with --prefix: {_listed(whole)}"
        )
    return whole[0] if whole else max(leading, key=lambda each: len(each.parts))


def _listed(candidates: Iterable[BackboneCandidate]) -> str:
    return first_few(repr(each.prefix.rstrip(".")) for each in candidates)


def _groups(names: Iterable[str], prefix: str) -> dict[str, int]:
    """How many of `names` there are in each module beside those that `prefix` leads through."""
    path = prefix.split(".")[:-1]
    counts: Counter[str] = Counter()
    for name in names:
        segments = without_wrappers(name).split(".")
        shared = 0
        while shared < min(len(path), len(segments) - 1) and segments[shared] == path[shared]:
            shared += 1
        counts[".".join(segments[: shared + 1])] += 1
    return dict(sorted(counts.items()))


def _no_backbone(names: Sequence[str], source: str) -> WeightsError:
    if cause := refusal_of(names):
        return WeightsError(f"{source} holds {cause}")
    found = describe_groups(_groups(names, "")) if names else "no tensors"
    return WeightsError(
        f"{source} holds no DINOv2 backbone, but {found}; give a checkpoint that has one"
    )
