"""Tensors out of checkpoint files, without running anything that is in them."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.state_dict import StateDict, entries_below

_NESTED = ("teacher", "model", "state_dict")
"""Names under which training code keeps the state dict; the official one keeps the teacher's."""

_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")


def read_pth(path: Path) -> StateDict:
    """The state dict in a file of `torch.save`, with the names of the bare backbone.

    A training checkpoint is reduced to its backbone: unnested, without `module.` and `backbone.`
    and without heads, and `blocks.CHUNK.INDEX.` (as fully sharded training names blocks) becomes
    `blocks.INDEX.`. The file stays memory-mapped where its format allows.

    Raises:
        WeightsError: damaged, not a checkpoint, or a pickle that holds more than tensors.
    """
    try:
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        mmap = zipfile.is_zipfile(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, or is no PyTorch checkpoint; nothing in it was run; "
            "save its state dict alone, best as .safetensors"
        ) from error
    except Exception as error:  # whatever damaged bytes lead the unpickler to
        raise _unreadable(path, error) from error
    return _backbone(_tensors(path, _unnested(checkpoint)))


def read_safetensors(path: Path) -> StateDict:
    """The tensors of a .safetensors file, under the names they have there.

    Raises:
        WeightsError: it cannot be read, or is damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    first_sentence = re.split(r"\.\s|\n", str(error))[0] or type(error).__name__
    return WeightsError(
        f"{path} cannot be read as a checkpoint ({first_sentence}); "
        "it is truncated or of another format: delete it and get it again"
    )


def _unnested(checkpoint: Any) -> Any:
    for name in _NESTED:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(name), dict):
            checkpoint = checkpoint[name]
    return checkpoint


def _tensors(path: Path, checkpoint: Any) -> StateDict:
    if not isinstance(checkpoint, dict):
        raise _no_state_dict(path, f"a {type(checkpoint).__name__}")
    for name, value in checkpoint.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise _no_state_dict(path, f"a {type(value).__name__} under {name!r}")
    return checkpoint


def _no_state_dict(path: Path, found: str) -> WeightsError:
    return WeightsError(
        f"{path} holds {found}, a state dict is tensors by name; "
        "save the model's state_dict() alone"
    )


def _backbone(state: StateDict) -> StateDict:
    for prefix in ("module.", "backbone."):
        state = entries_below(state, prefix)
    return {_CHUNKED_BLOCK.sub("blocks.", name): tensor for name, tensor in state.items()}
