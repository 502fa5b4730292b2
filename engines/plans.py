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
    The files of plans that it no longer contains are removed, and files of the same name that
    builds have left which were killed before this point.

    Raises:
        BuildError: another build of the same plan ended meanwhile, and removed this one's file.
    """
    with Manifest.changing(bundle) as manifest:
        if not (bundle / entry.file.path).is_file():
            raise BuildError(f"{bundle}: another build of this plan has just ended; build again")
        kept = tuple(plan for plan in manifest.plans if identity_of(plan) != identity_of(entry))
        changed = dataclasses.replace(manifest, plans=(*kept, entry))
        changed.succeed(manifest, bundle, _plans_like(bundle, entry))


def _plans_like(bundle: Path, entry: PlanEntry) -> set[str]:
    """The files whose names differ from the file of `entry` only in the hash."""
    name, _, _ = entry.file.path.rpartition("-")
    return {
        file.relative_to(bundle).as_posix()
        for file in (bundle / FOLDER).glob("*.plan")
        if file.relative_to(bundle).as_posix().rpartition("-")[0] == name
    }


def identity_of(plan: PlanEntry) -> tuple[str, ...]:
    """The key of a plan in its bundle: target, flavour, version, precision."""
    return plan.target, plan.flavour, plan.version, plan.precision
