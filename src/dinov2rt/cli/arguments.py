"""Arguments that several verbs share, and functions that use them."""

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Callable
from pathlib import Path

from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.remote import local_bundle
from dinov2rt.errors import InputError
from dinov2rt.extraction.ray_cluster import Cluster
from dinov2rt.named_enum import unknown_name
from dinov2rt.optional import require
from dinov2rt.runtime.backends.modes import BACKENDS, DEVICES
from dinov2rt.runtime.cpu import usable_cores
from dinov2rt.runtime.model import DEFAULT_MAX_PIXELS, Model, load

EXECUTORS = ("local", "ray")

_BEST = "(default: the best that runs here)"


def add_bundle(
    parser: ArgumentParser,
    *,
    optional: bool = False,
    located: Callable[[str], str | Path] = local_bundle,
) -> None:
    """The positional argument BUNDLE; `located` converts it, by default to a folder."""
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        nargs="?" if optional else None,
        type=located,
        help="directory of the bundle, or its URL for fsspec, from which it is copied once",
    )


def add_load_options(parser: ArgumentParser) -> None:
    """Options that decide how a bundle runs; see `load`."""
    group = parser.add_argument_group("how the bundle is run")
    group.add_argument(
        "--device",
        default="auto",
        help=f"{', '.join(DEVICES)}, or a GPU by number as in cuda:1 (default: auto)",
    )
    group.add_argument("--backend", help=f"{', '.join(BACKENDS)} {_BEST}")
    group.add_argument("--precision", help=f"{', '.join(Precision)} {_BEST}")
    group.add_argument("--threads", type=int, metavar="N", help="threads of the CPU backend")


def load_model(arguments: Namespace, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Model:
    """`load`, with the options of `add_load_options`."""
    return load(
        arguments.bundle,
        device=arguments.device,
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        max_pixels=max_pixels,
    )


def add_executor(group: _ArgumentGroup) -> None:
    """The arguments of `cluster_of`."""
    group.add_argument(
        "--executor",
        default="local",
        help=f"{', '.join(EXECUTORS)} (default: local); ray is a cluster",
    )
    group.add_argument(
        "--address", help="of a running Ray cluster, or auto (default: start one on this machine)"
    )
    group.add_argument("--workers", type=int, metavar="N", help="Ray actors (default: 1)")
    group.add_argument("--cores", type=int, metavar="N", help="CPU cores an actor (default: all)")
    group.add_argument("--gpus", type=float, metavar="N", help="GPUs an actor (default: 0)")


def cluster_of(arguments: Namespace) -> Cluster | None:
    """Where to compute; None is this process.

    Raises:
        InputError: an unknown executor, or options of a cluster without one.
    """
    asked = {
        name: getattr(arguments, name)
        for name in ("address", "workers", "cores", "gpus")
        if getattr(arguments, name) is not None
    }
    if arguments.executor not in EXECUTORS:
        raise unknown_name("executor", arguments.executor, EXECUTORS)
    if arguments.executor == "local":
        if asked:
            raise InputError(
                f"--{next(iter(asked))} is for --executor ray; add it or leave this out"
            )
        return None
    return Cluster(**({"cores": usable_cores()} | asked))


def require_export_room(purpose: str, *, extra: str = "export") -> None:
    """Say which extra is missing, before any module of the export room is imported.

    `extra` is the extra with all packages for the purpose.

    Raises:
        MissingDependencyError: a package of the extra is not installed.
    """
    for package in ("torch", "onnx", "onnxscript", "safetensors"):
        require(package, extra=extra, purpose=purpose)
