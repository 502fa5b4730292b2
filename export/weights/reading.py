"""From the path of a checkpoint, whatever its form, to the state dict of the backbone in it."""

import stat
from dataclasses import dataclass
from pathlib import Path

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.backbone.assembly import assemble
from dinov2rt.export.weights.backbone.search import Backbone, find_backbone
from dinov2rt.export.weights.containers import SUFFIXES, read_checkpoint
from dinov2rt.export.weights.folders import weight_files
from dinov2rt.export.weights.state_dict import StateDict

ALLOWED = (
    f"allowed are official, synthetic:SEED, a file of {', '.join(SUFFIXES)}, a folder of "
    "transformers or timm, and OWNER/NAME on the Hugging Face hub"
)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A backbone under official names, where in the checkpoint it was, and the files it is from."""

    state_dict: StateDict
    backbone: Backbone
    files: tuple[Path, ...]


def read_backbone(
    location: Path, prefix: str | None = None, num_patches: int | None = None
) -> Checkpoint:
    """The backbone in the checkpoint at `location`, a file or a folder.

    Every form gives the same official state dict: checkpoints of training and of wrappers, of timm
    and of transformers, in one file or in shards.

    Args:
        location: the file or folder.
        prefix: what the backbone's names begin with; None looks for it.
        num_patches: patches of the position table, where it is not square and from timm.

    Raises:
        WeightsError: it cannot be read, or holds no backbone, or several of equal rank.
    """
    source = str(location)
    if _is_folder(location):
        files = weight_files(location)
    elif location.suffix in SUFFIXES:
        files = [location]
    else:
        raise WeightsError(f"weights {source!r} are of an unknown type; {ALLOWED}")
    tensors = read_checkpoint(files, source)
    backbone = find_backbone(tensors, source, prefix)
    state = assemble(tensors, backbone, source, num_patches)
    return Checkpoint(state, backbone, tuple(files))


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"weights {str(path)!r} cannot be read ({reason}); {ALLOWED}") from error
