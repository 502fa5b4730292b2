"""Writes plans into a bundle atomically, and records them in its manifest."""

import dataclasses
from pathlib import Path
from typing import Any

from dinov2rt.bundle.entries import FileEntry, PlanEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.errors import BuildError
from dinov2rt.files import replacing

FOLDER = "plans"
_HASH_DIGITS = 12


def write_plan(bundle: Path, name: str, plan: Any) -> FileEntry:
    """Write the bytes of `plan` to `BUNDLE/plans/NAME-HASH.plan`.

    HASH is the hash of the content. The file of a plan in the manifest is therefore never
    overwritten, and a killed build leaves the old plan intact.

    Raises:
        BuildError: the file cannot be written.
    """
    import hashlib

    digest = hashlib.sha256(plan).hexdigest()
    path = f"{FOLDER}/{name}-{digest[:_HASH_DIGITS]}.plan"
    with replacing(bundle / path, BuildError, make_folder=True) as partial:
        partial.write_bytes(plan)
    return FileEntry.of(bundle, path)


def record_plan(bundle: Path, entry: PlanEntry) -> None:
    """Add `entry` to the manifest; it replaces the plan of the same target, version and precision.

    The manifest is read again, because another build may have changed it since this build began.
    The files of plans that it no longer contains are removed.
    """
    with Manifest.changing(bundle) as manifest:
        kept = tuple(plan for plan in manifest.plans if identity_of(plan) != identity_of(entry))
        changed = dataclasses.replace(manifest, plans=(*kept, entry))
        changed.write(bundle)
        for gone in {file.path for file in manifest.files} - {file.path for file in changed.files}:
            (bundle / gone).unlink(missing_ok=True)


def identity_of(plan: PlanEntry) -> tuple[str, ...]:
    """The key of a plan in its bundle: target, flavour, version, precision."""
    return plan.target, plan.flavour, plan.version, plan.precision
