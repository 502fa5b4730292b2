"""From what `--weights` says to a checked official state dict."""

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from dinov2rt.bundle.manifest import WeightsEntry, sha256_of
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.huggingface import read_huggingface, weight_files
from dinov2rt.export.weights.official import official_checkpoint
from dinov2rt.export.weights.preprocessor import normalization_of
from dinov2rt.export.weights.readers import read_pth, read_safetensors
from dinov2rt.export.weights.state_dict import (
    StateDict,
    check_state_dict,
    state_dict_sha256,
    to_float32,
)
from dinov2rt.export.weights.synthetic import synthetic_state_dict

_ALLOWED = (
    "allowed are official, synthetic:SEED, a .pth, .pt or .safetensors file, "
    "and a Hugging Face folder"
)
_READERS = {".pth": read_pth, ".pt": read_pth, ".safetensors": read_safetensors}


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A checked state dict (official keys, contiguous float32), and where it came from.

    `normalization` is what stands beside the weights, or the official model's.
    """

    state_dict: StateDict
    entry: WeightsEntry
    normalization: Normalization = IMAGENET


def load_weights(source: str, variant: Variant) -> Weights:
    """The weights of `variant` from `source`, downloaded if need be.

    Args:
        source: "official"; "synthetic:SEED"; or the path of a .pth, .pt or .safetensors file
            with official keys, or of a Hugging Face folder.
        variant: what the weights must be of.

    Raises:
        WeightsError: they cannot be had, cannot be read, or do not fit.
    """
    location = str(official_checkpoint(variant)) if source == "official" else source
    state, file = _read(location, variant)
    check_state_dict(state, variant, location)
    state = to_float32(state)
    sha256 = sha256_of(file) if file else state_dict_sha256(state)
    return Weights(state, WeightsEntry(source=source, sha256=sha256), _normalization(location))


def _normalization(location: str) -> Normalization:
    """What stands beside the weights, in their folder or in that of their file."""
    path = Path(location)
    if not path.exists():  # synthetic
        return IMAGENET
    return normalization_of(path if path.is_dir() else path.parent)


def _read(location: str, variant: Variant) -> tuple[StateDict, Path | None]:
    """The tensors at `location`, and the file they come from if it is a single one."""
    if location.partition(":")[0] == "synthetic":
        return synthetic_state_dict(variant, _seed(location)), None
    path = Path(location)
    if _is_folder(path):
        state = read_huggingface(path, variant)
        files = weight_files(path)
        return state, files[0] if len(files) == 1 else None
    if path.suffix not in _READERS:
        raise WeightsError(f"weights {location!r} are of an unknown type; {_ALLOWED}")
    return _READERS[path.suffix](path), path


def _seed(source: str) -> int:
    match = re.fullmatch("synthetic:([0-9]{1,18})", source)
    if match is None:
        raise WeightsError(
            f"weights {source!r} name no seed; allowed is synthetic:SEED with a whole number "
            "of up to 18 digits, e.g. synthetic:0"
        )
    return int(match[1])


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(
            f"weights {str(path)!r} cannot be read ({reason}); {_ALLOWED}"
        ) from error
