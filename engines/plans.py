"""Writes plans into a bundle atomically, and records them in its manifest."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

from dinov2rt.bundle.manifest import FileEntry, Manifest, PlanEntry
from dinov2rt.errors import BuildError

FOLDER = "plans"


def write_plan(bundle: Path, name: str, plan: Any) -> FileEntry:
    """Write the bytes of `plan` to `BUNDLE/plans/NAME`, replacing what is there.

    Raises:
        BuildError: the file cannot be written.
    """
    path = f"{FOLDER}/{name}"
    file = bundle / path
    partial = file.with_name(f"{name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(plan)
        partial.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise BuildError(
            f"{file} cannot be written ({error.strerror}); "
            "check the space and the permissions there"
        ) from error
    return FileEntry.of(bundle, path)


def record_plan(bundle: Path, entry: PlanEntry) -> None:
    """Add `entry` to the manifest; it replaces the plan of the same target, version and precision.

    The manifest is read anew: another build may have ended since this one began.
    """
    manifest = Manifest.read(bundle)
    kept = tuple(plan for plan in manifest.plans if identity_of(plan) != identity_of(entry))
    dataclasses.replace(manifest, plans=(*kept, entry)).write(bundle)


def identity_of(plan: PlanEntry) -> tuple[str, ...]:
    """What two plans of one bundle differ in: target, flavour, version, precision."""
    return plan.target, plan.flavour, plan.version, plan.precision
