"""Tensors by name out of checkpoint files of every kind, whole or in shards."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.pickles import read_pickle, unreadable
from dinov2rt.export.weights.state_dict import StateDict, first_few
from dinov2rt.files import require_regular

_DEEPEST = 16
_MOST_ENTRIES = 2**20

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
SUFFIXES = (*PICKLE_SUFFIXES, ".safetensors")
"""Files that are read as checkpoints."""


def read_checkpoint(files: Sequence[Path], source: str) -> StateDict:
    """All tensors in `files`, the shards of one checkpoint, by name.

    Names of nested dictionaries are joined by dots, as in `teacher.backbone.cls_token`. Values
    that are not tensors are left out.

    Raises:
        WeightsError: a file is damaged or holds what cannot be read, or two shards have a tensor
            of the same name.
    """
    tensors: StateDict = {}
    for file in files:
        found = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
        twice = found.keys() & tensors.keys()
        if twice:
            raise WeightsError(
                f"{source} has {first_few(sorted(twice))} in more than one file; get it again"
            )
        tensors |= found
    return tensors


def _read_safetensors(path: Path) -> StateDict:
    try:
        require_regular(path)
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def _read_pickle(path: Path) -> StateDict:
    tensors: StateDict = {}
    for entries, (name, value) in enumerate(_leaves(read_pickle(path), (), path)):
        if entries > _MOST_ENTRIES:
            raise WeightsError(
                f"{path} has over {_MOST_ENTRIES} entries; save its state dict alone"
            )
        if not isinstance(value, Tensor):
            continue
        if name in tensors:
            raise WeightsError(f"{path} has two tensors called {name!r}; save its state dict alone")
        tensors[name] = value
    return tensors


def _leaves(value: Any, path_to: tuple[str, ...], file: Path) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries and lists, by the names that lead to them."""
    if len(path_to) > _DEEPEST:
        raise WeightsError(f"{file} is nested over {_DEEPEST} deep; save its state dict alone")
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield ".".join(path_to), value
        return
    for key, item in items:
        yield from _leaves(item, (*path_to, str(key)), file)
