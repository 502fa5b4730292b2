"""Tensors of a head out of checkpoint files, without running anything that is in them."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dinov2rt.errors import WeightsError

StateDict = dict[str, torch.Tensor]

# The official depth files keep a numpy scalar beside the weights. Files from numpy 1 name its
# module by the old path, which only the tuple's second entry allows.
_SCALAR: Any = type(np.float32(0)).__reduce__(np.float32(0))[0]
_ALLOWED: list[Any] = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]
_PREFIX = "module."


def read_head(path: Path) -> StateDict:
    """The tensors of a .pth, .pt or .safetensors file under their own names.

    A dict below `state_dict` is taken out, and `module.` in front of names is dropped. Anything
    beside it, such as an optimizer's state, is ignored.

    Raises:
        WeightsError: missing, damaged, of another format, or a pickle that holds code.
    """
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise WeightsError(
            f"head weights {str(path)!r} are of an unknown type; allowed are official, "
            "synthetic:SEED, and a .pth, .pt or .safetensors file"
        )
    tensors = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors ({error}); get it again"
        ) from error


def _pickled(path: Path) -> StateDict:
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of another protocol than its own
            checkpoint = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors and numbers, or is no PyTorch checkpoint; nothing in "
            "it was run; save its state dict alone, best as .safetensors"
        ) from error
    except Exception as error:  # whatever damaged bytes lead the unpickler to
        raise WeightsError(
            f"{path} cannot be read as a checkpoint ({str(error) or type(error).__name__}); "
            "it is cut short or of another format, get it again"
        ) from error
    return _state_dict(path, checkpoint)


def _state_dict(path: Path, checkpoint: Any) -> StateDict:
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict):
        checkpoint = checkpoint["state_dict"]
    if not isinstance(checkpoint, dict):
        raise WeightsError(f"{path} holds a {type(checkpoint).__name__}, not tensors by name")
    for name, value in checkpoint.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise WeightsError(f"{path} holds a {type(value).__name__} under {name!r}, no tensor")
    return checkpoint
