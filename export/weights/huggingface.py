"""DINOv2 of transformers: official weights under its names."""

from collections.abc import Iterable

from dinov2rt.export.weights.backbone.names import FUSED, from_transformers
from dinov2rt.export.weights.state_dict import StateDict


def from_official_names(state: StateDict, names: Iterable[str]) -> StateDict:
    """An official `state` under `names` of transformers, all or some of theirs.

    Raises:
        KeyError: a name that no tensor of `state` goes by.
    """
    parts = dict(state)
    for fused, pieces in FUSED.items():
        for name in [name for name in state if fused in name]:
            rows = state[name].chunk(len(pieces))
            parts |= {
                name.replace(fused, piece): row for piece, row in zip(pieces, rows, strict=True)
            }
    return {name: parts[from_transformers(name)] for name in names}
