"""From what `--weights` says to a checked official state dict."""

import re
from dataclasses import dataclass
from pathlib import Path

from dinov2rt.bundle.manifest import sha256_of
from dinov2rt.bundle.normalization import IMAGENET, Normalization
from dinov2rt.bundle.variants import Variant
from dinov2rt.bundle.weights_entry import WeightsEntry
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.hub import download, is_hub_id
from dinov2rt.export.weights.huggingface import check_config
from dinov2rt.export.weights.official import official_checkpoint
from dinov2rt.export.weights.preprocessor import normalization_of
from dinov2rt.export.weights.reading import read_backbone
from dinov2rt.export.weights.state_dict import (
    StateDict,
    check_state_dict,
    state_dict_sha256,
    to_float32,
)
from dinov2rt.export.weights.synthetic import synthetic_state_dict


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A checked state dict (official keys, contiguous float32), and where it came from.

    `normalization` is what stands beside the weights, or the official model's.
    """

    state_dict: StateDict
    entry: WeightsEntry
    normalization: Normalization = IMAGENET


def load_weights(source: str, variant: Variant, prefix: str | None = None) -> Weights:
    """The weights of `variant` from `source`, downloaded if need be.

    Args:
        source: "official"; "synthetic:SEED"; the path of a checkpoint, a file or a folder of
            transformers or timm; or OWNER/NAME[@REVISION] on the Hugging Face hub.
        variant: what the weights must be of.
        prefix: what the names of the backbone begin with; None looks for it.

    Raises:
        WeightsError: they cannot be had, cannot be read, or do not fit.
        MissingDependencyError: huggingface_hub is needed and not installed.
    """
    if source.partition(":")[0] == "synthetic":
        state = synthetic_state_dict(variant, _seed(source))
        return Weights(state, WeightsEntry(source, state_dict_sha256(state)))
    location, revision = _located(source, variant)
    found = read_backbone(location, prefix)
    if location.is_dir():
        check_config(location, variant)
    check_state_dict(found.state_dict, variant, str(location))
    state = to_float32(found.state_dict)
    files = found.files
    entry = WeightsEntry(
        source=source,
        sha256=sha256_of(files[0]) if len(files) == 1 else state_dict_sha256(state),
        prefix=found.backbone.prefix,
        naming=found.backbone.naming,
        left_out=found.backbone.left_out,
        revision=revision,
    )
    return Weights(state, entry, _normalization(location))


def _located(source: str, variant: Variant) -> tuple[Path, str | None]:
    """The file or folder that `source` stands for, and the revision of one from the hub."""
    if source == "official":
        return official_checkpoint(variant), None
    if "://" in source:
        raise WeightsError(
            f"weights {source} are a URL; download the file and give its path, or ask for official"
        )
    if is_hub_id(source):
        snapshot = download(source)
        return snapshot.folder, snapshot.revision
    return Path(source), None


def _normalization(location: Path) -> Normalization:
    """What stands beside the weights, in their folder or in that of their file."""
    return normalization_of(location if location.is_dir() else location.parent)


def _seed(source: str) -> int:
    match = re.fullmatch("synthetic:([0-9]{1,18})", source)
    if match is None:
        raise WeightsError(
            f"weights {source!r} name no seed; allowed is synthetic:SEED with a whole number "
            "of up to 18 digits, e.g. synthetic:0"
        )
    return int(match[1])
