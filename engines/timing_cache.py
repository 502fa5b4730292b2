"""TensorRT's timing cache: keeps kernel timings between builds, for builders that time kernels."""

import contextlib
import re
from pathlib import Path
from typing import Any

from dinov2rt.engines.flavours import Toolkit
from dinov2rt.files import read_regular, replacing

FOLDER = "timing-cache"
_MOST_BYTES = 2**30


def default_file(bundle: Path, toolkit: Toolkit, target: str) -> Path:
    """The default timing cache: beside the bundle, so that all bundles in the folder share it.

    Timings are valid for one GPU model and one version of TensorRT (its guide, "Optimizing Builder
    Performance"), and the file's name has both.
    """
    gpu = re.sub(r"\W+", "-", toolkit.gpu.name).lower() if toolkit.gpu else "no-gpu"
    name = f"{toolkit.flavour}-{toolkit.version}-{target}-{gpu}.cache"
    return bundle.absolute().parent / FOLDER / name


def attach(config: Any, file: Path) -> None:
    """Load `file` into the builder; start empty if it is missing or from another GPU or version."""
    content = b""
    with contextlib.suppress(FileNotFoundError):
        content = read_regular(file, _MOST_BYTES)
    ignore_mismatch = False
    if not config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch)


def save(config: Any, file: Path) -> None:
    """Write the builder's timings to `file`, atomically.

    Raises:
        Dinov2rtError: it cannot be written.
    """
    with replacing(file, make_folder=True) as partial:
        partial.write_bytes(config.get_timing_cache().serialize())
