"""How long each kernel took, kept from one build to the next, for builders that time kernels."""

import contextlib
import re
from pathlib import Path
from typing import Any

from dinov2rt.engines.flavours import Toolkit

FOLDER = "timing-cache"


def default_file(bundle: Path, toolkit: Toolkit, target: str) -> Path:
    """Beside the bundle, so that all variants share it; named after what its times hold for.

    They hold for one GPU model and one version of TensorRT (its guide, "Optimizing Builder
    Performance").
    """
    gpu = re.sub(r"\W+", "-", toolkit.gpu.name).lower() if toolkit.gpu else "no-gpu"
    name = f"{toolkit.flavour}-{toolkit.version}-{target}-{gpu}.cache"
    return bundle.absolute().parent / FOLDER / name


def attach(config: Any, file: Path) -> None:
    """Let the builder start from `file`; from nothing if it is missing, or was made elsewhere."""
    content = b""
    with contextlib.suppress(FileNotFoundError):
        content = file.read_bytes()
    ignore_mismatch = False
    if not config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch)


def save(config: Any, file: Path) -> None:
    """Write what the builder knows now to `file`, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(config.get_timing_cache().serialize())
    partial.replace(file)
