"""Plans that a manifest names, for tests that need no real one."""

import dataclasses
from pathlib import Path
from typing import Any

from dinov2rt.bundle.entries import FileEntry, Flavour, PlanEntry
from dinov2rt.bundle.manifest import Manifest


def add_plan(bundle: Path, **changes: Any) -> PlanEntry:
    """Write `plans/a.plan` and name it in the manifest, as built from the only graph."""
    (bundle / "plans").mkdir()
    (bundle / "plans" / "a.plan").write_bytes(b"a plan")
    manifest = Manifest.read(bundle)
    (graph,) = manifest.graphs
    plan = PlanEntry(
        file=FileEntry.of(bundle, "plans/a.plan"),
        flavour=Flavour.TENSORRT_RTX,
        version="1.7",
        target="sm80",
        precision=graph.precision,
        input_name=graph.input_name,
        outputs=graph.outputs,
        profiles=(),
        fused_attention=0,
        weight_bytes=1,
        build_seconds=1.0,
        graph_sha256=graph.files[0].sha256,
    )
    plan = dataclasses.replace(plan, **changes)
    dataclasses.replace(manifest, plans=(plan,)).write(bundle)
    return plan
