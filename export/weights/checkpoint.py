"""From what `--weights` says to a checked official state dict."""

import re
from dataclasses import dataclass
from pathlib import Path

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import WeightsEntry, sha256_of
from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.architecture import (
    NOTHING_STATED,
    Stated,
    as_of_library,
    as_wanted,
    following,
    read_architecture,
)
from dinov2rt.export.weights.hub import download, is_hub_id
from dinov2rt.export.weights.official import official_checkpoint
from dinov2rt.export.weights.reading import read_backbone
from dinov2rt.export.weights.source_config import check_config, library_of, stated_beside
from dinov2rt.export.weights.source_steps import source_steps
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

    `library` is transformers or timm, for weights from there, and `of_source` the architecture as
    that computes it. `preprocess` is how it scales and crops images, see `source_steps`.
    """

    state_dict: StateDict
    architecture: Architecture
    entry: WeightsEntry
    of_source: Architecture | None = None
    library: str | None = None
    preprocess: str | None = None


def load_weights(
    source: str,
    wanted: Architecture | None,
    prefix: str | None = None,
    stated: Stated = NOTHING_STATED,
) -> Weights:
    """The weights from `source`, downloaded if need be.

    Args:
        source: "official"; "synthetic:SEED"; the path of a checkpoint, a file or a folder of
            transformers or timm; or OWNER/NAME[@REVISION] on the Hugging Face hub.
        wanted: what the weights must be of; None takes whatever they are.
        prefix: what the names of the backbone begin with; None looks for it.
        stated: of their architecture; it counts more than what stands beside the weights.

    Raises:
        WeightsError: they cannot be had, cannot be read, or do not fit.
        MissingDependencyError: huggingface_hub is needed and not installed.
    """
    if source.partition(":")[0] == "synthetic":
        return _synthetic(source, wanted, stated)
    location, revision = _located(source, wanted)
    found = read_backbone(location, prefix, stated.num_patches)
    library = library_of(location, found.backbone.naming)
    if stated.follows_source:
        stated = following(stated, found.state_dict, library, str(location))
    stated = stated.over(stated_beside(location, stated))
    architecture = _architecture(found.state_dict, wanted, str(location), stated)
    if location.is_dir():
        check_config(location, architecture)
    check_state_dict(found.state_dict, wanted or architecture, str(location))
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
    of_source = as_of_library(architecture, library)
    return Weights(state, architecture, entry, of_source, library, source_steps(location))


def _synthetic(source: str, wanted: Architecture | None, stated: Stated) -> Weights:
    if stated.follows_source:
        raise WeightsError(f"weights {source} have no source to follow; leave --interpolation out")
    if wanted is None:
        raise WeightsError(f"weights {source} are drawn for a variant; name one in place of auto")
    state = synthetic_state_dict(wanted, _seed(source))
    entry = WeightsEntry(source, state_dict_sha256(state))
    return Weights(state, as_wanted(wanted, stated, source), entry)


def _architecture(
    state: StateDict, wanted: Architecture | None, source: str, stated: Stated
) -> Architecture:
    if wanted is None:
        return read_architecture(state, source, stated)
    return as_wanted(wanted, stated, source)


def _located(source: str, wanted: Architecture | None) -> tuple[Path, str | None]:
    """The file or folder that `source` stands for, and the revision of one from the hub."""
    if source == "official":
        if not isinstance(wanted, Variant):
            raise WeightsError(
                "official weights exist for the variants only; name a variant in place of auto"
            )
        return official_checkpoint(wanted), None
    if "://" in source:
        raise WeightsError(
            f"weights {source} are a URL; download the file and give its path, or ask for official"
        )
    if is_hub_id(source):
        snapshot = download(source)
        return snapshot.folder, snapshot.revision
    return Path(source), None


def _seed(source: str) -> int:
    match = re.fullmatch("synthetic:([0-9]{1,18})", source)
    if match is None:
        raise WeightsError(
            f"weights {source!r} name no seed; allowed is synthetic:SEED with a whole number "
            "of up to 18 digits, e.g. synthetic:0"
        )
    return int(match[1])
