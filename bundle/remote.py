"""Copies a bundle from a URL to this machine, once."""

import contextlib
import hashlib
import importlib.util
import os
import posixpath
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov2rt.bundle.manifest import MANIFEST_NAME, Manifest
from dinov2rt.bundle.variants import variants
from dinov2rt.errors import BundleError, Dinov2rtError, first_line
from dinov2rt.optional import require
from dinov2rt.place import scratch_beside

CACHE_VARIABLE = "DINOV2RT_CACHE"
_EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "safetensors")


def is_url(bundle: str | Path) -> bool:
    """Whether `bundle` is a URL, such as s3://models/dinov2_vits14, rather than a path."""
    return isinstance(bundle, str) and "://" in bundle


def local_bundle(bundle: str | Path) -> Path:
    """The folder of `bundle` on this machine; a URL is copied first.

    The name of a variant, such as "dinov2_vits14_reg", is its bundle in the cache; see
    `named_bundle`.

    Every URL that fsspec reads is allowed. The copy is in `$DINOV2RT_CACHE`, by default
    `~/.cache/dinov2rt`, in a folder named after the hash of the manifest. If the bundle at the URL
    changes, it is therefore copied again. The folder gets this name when every file in it has the
    size and hash in the manifest; several processes may copy concurrently.

    Raises:
        BundleError: the bundle cannot be read or stored, or a file differs from the manifest.
        MissingDependencyError: fsspec is not installed.
    """
    if is_variant_name(bundle):
        return named_bundle(str(bundle), _cache())
    if not is_url(bundle):
        return Path(bundle)
    url = str(bundle)
    fsspec = require("fsspec", extra="remote", purpose=f"reading {url}")
    with _as_bundle_error(url):
        files, root = fsspec.url_to_fs(url)
        content = files.cat_file(posixpath.join(root, MANIFEST_NAME))
        folder = _cache() / hashlib.sha256(content).hexdigest()
        if not folder.is_dir():
            _copy(files, root, content, folder)
    return folder


def _cache() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "dinov2rt")


def _copy(files: Any, root: str, manifest: bytes, folder: Path) -> None:
    """Copy the bundle at `root` to `folder`, atomically."""
    with scratch_beside(folder) as scratch:
        part = scratch / "bundle"
        part.mkdir()
        part.joinpath(MANIFEST_NAME).write_bytes(manifest)
        for entry in Manifest.read(part).files:
            target = part / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(posixpath.join(root, entry.path), str(target))
            entry.check(part, rebuild="copy it there again")
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process copied the same files first
                raise


@contextlib.contextmanager
def _as_bundle_error(url: str) -> Iterator[None]:
    try:
        yield
    except Dinov2rtError as error:
        raise BundleError(f"{url}: {error}") from error
    except Exception as error:  # each file system of fsspec raises its own types
        raise BundleError(
            f"{url} cannot be copied here ({type(error).__name__}: {first_line(error)}); check the "
            f"URL and the access to it, or copy the bundle by hand and give its folder"
        ) from error


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
