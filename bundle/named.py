"""Bundles by the name of a variant: from the cache, or exported into it once."""

import importlib.util
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

from dinov2rt.bundle.manifest import MANIFEST_NAME
from dinov2rt.bundle.variants import variants
from dinov2rt.errors import BundleError

_EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "safetensors")


def is_variant_name(bundle: str | Path) -> bool:
    """Whether `bundle` is the name of a variant, and no file or folder here is called so."""
    return str(bundle) in {variant.name for variant in variants()} and not Path(bundle).exists()


def named_bundle(name: str, cache: Path) -> Path:
    """The bundle of the variant `name` in `cache`, exported from the official weights if need be.

    The export runs in a process of its own, which alone imports torch.

    Raises:
        BundleError: it is not there, and cannot be exported here; the message has the command.
    """
    folder = cache / "bundles" / name
    if (folder / MANIFEST_NAME).is_file():
        return folder
    command = ["export", name, "--out", str(folder)]
    if any(importlib.util.find_spec(package) is None for package in _EXPORT_PACKAGES):
        raise BundleError(
            f"there is no bundle of {name} in {folder.parent} yet; make it, once, where torch is "
            f"(pip install 'dinov2rt[export]'): dinov2rt {shlex.join(command)}"
        )
    warnings.warn(
        f"exporting {name} from the official weights into {folder}, once; this takes minutes",
        stacklevel=2,
    )
    ended = subprocess.run(  # noqa: S603 (our own program, and a name of the table)
        [sys.executable, "-m", "dinov2rt", *command], capture_output=True, text=True, check=False
    )
    if not (folder / MANIFEST_NAME).is_file():  # another process may have been first
        reason = ended.stderr.strip().rpartition("\n")[2].removeprefix("dinov2rt: error: ")
        raise BundleError(f"{name} cannot be exported: {reason}")
    return folder
