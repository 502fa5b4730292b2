"""Checkpoints on the Hugging Face hub: downloaded once, into the cache that transformers shares."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from dinov2rt.errors import WeightsError, first_line
from dinov2rt.export.weights.containers import SUFFIXES
from dinov2rt.optional import require

_PART = r"[\w.-]{1,96}"
_ID = re.compile(rf"(?:hf[-_]hub:)?(?P<id>{_PART}/{_PART}?)(?:@(?P<revision>[\w./-]{{1,96}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BESIDE = ("config.json", "preprocessor_config.json")
_FORMS = (
    ("model.safetensors", "model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model*.bin", "pytorch_model.bin.index.json"),
)
"""Tried one after the other: most repositories hold both."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder of files at one commit of a repository."""

    folder: Path
    revision: str


def is_hub_id(source: str) -> bool:
    """Whether `source` reads like OWNER/NAME, perhaps with @REVISION, and not like a path."""
    if _ID.fullmatch(source) is None or source.startswith("."):
        return False
    return Path(source).suffix not in SUFFIXES and not Path(source).exists()


def download(source: str) -> Snapshot:
    """The weights and configuration files of the repository `source`, OWNER/NAME[@REVISION].

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        WeightsError: the repository cannot be had, or holds no weights.
    """
    match = _ID.fullmatch(source)
    assert match is not None  # noqa: S101  # `is_hub_id` was asked
    hub = require("huggingface_hub", extra="hub", purpose=f"downloading {source}")
    for patterns in _FORMS:
        try:
            folder = _folder(hub, match["id"], match["revision"], [*patterns, *_BESIDE])
        except Exception as error:  # of its own, of requests, of the system
            raise WeightsError(
                f"{source} is neither a file nor can it be downloaded from the Hugging Face hub "
                f"({first_line(error)}); give the path of a checkpoint"
            ) from error
        if any(Path(folder).glob(patterns[1])):
            return Snapshot(Path(folder), Path(folder).name)
    raise WeightsError(
        f"{source} on the Hugging Face hub holds no {_FORMS[0][0]} and no {_FORMS[1][0]}; "
        "download its weights and give their path"
    )


def _folder(hub: ModuleType, repository: str, revision: str | None, patterns: list[str]) -> str:
    """The folder of a repository's files in the cache."""

    def download_snapshot(*, local: bool) -> str:
        folder: str = hub.snapshot_download(
            repository, revision=revision, allow_patterns=patterns, local_files_only=local
        )
        return folder

    try:
        return download_snapshot(local=False)
    except Exception:
        # Without a network, some releases refuse a commit that the cache holds.
        if revision is not None and _COMMIT.fullmatch(revision):
            with contextlib.suppress(Exception):
                return download_snapshot(local=True)
        raise
