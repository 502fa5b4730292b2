"""Files of `torch.save`, read without running anything that is in them.

A checkpoint of training holds more than tensors: options, schedules, the classes of a framework.
Types on a list of inert ones are read around: an empty stand-in takes the place of such an object,
and the package that it is from is neither imported nor needed. Other types are refused by name.
"""

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.state_dict import first_few
from dinov2rt.files import require_regular

_PLAIN_TYPES = "dict list tuple set frozenset str int float bool bytes complex object slice range"
_PACKAGES = (
    "omegaconf yacs addict easydict ml_collections hydra mmengine mmcv fvcore iopath torchmetrics "
    "pytorch_lightning lightning lightning_fabric lightning_utilities torch.optim"
)
_INERT = re.compile(
    r"(argparse\.Namespace|types\.SimpleNamespace|typing\.\w+|functools\.partial"
    r"|collections\.defaultdict"
    rf"|(builtins|__builtin__)\.({_PLAIN_TYPES.replace(' ', '|')}|unicode|long)"
    r"|_codecs\.encode|copyreg\._reconstructor|copy_reg\._reconstructor"
    r"|(pathlib|datetime|decimal|enum|uuid|fractions)\.[\w.]+"
    r"|numpy\.(dtype|ndarray|dtypes\.\w+|bool_?|u?int\d+|float\d+)"
    r"|numpy\._?core\.multiarray\.(scalar|_reconstruct)"
    rf"|({_PACKAGES.replace('.', chr(92) + '.').replace(' ', '|')})\.[\w.]+)"
)
"""Types that hold no weights: options, paths, dates, numbers of numpy, schedules."""

_MAPPING = re.compile(r".*\.(AttributeDict|EasyDict|ConfigDict|Dict|CfgNode|defaultdict)")
"""Types that are dictionaries, whose items are read."""

_WAY_OUT = "nothing in it was run; save its state dict alone, best as .safetensors"


_Callable = Callable[..., Any]
_Global = _Callable | tuple[_Callable, str]


class _Inert:
    """Takes the place of an object whose type is not loaded, and keeps nothing of it."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


class _InertMapping:
    """Takes the place of a dictionary type; the unpickler fills none but its own types."""

    def __new__(cls, *_: Any) -> "OrderedDict[Any, Any]":  # type: ignore[misc]
        """An empty dictionary, whatever it was made from."""
        return OrderedDict()


def read_pickle(path: Path) -> Any:
    """Read what `torch.save` wrote to `path`, with stand-ins for objects of inert types.

    The file stays memory-mapped where its format allows.

    Raises:
        WeightsError: damaged, not a checkpoint, or with a type that cannot be read around.
    """
    try:
        require_regular(path)
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        is_zip = zipfile.is_zipfile(path)
        stand_ins = _stand_ins(path) if is_zip else []
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of another protocol than its own
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, or is no PyTorch checkpoint; {_WAY_OUT}"
        ) from error
    except Exception as error:  # whatever damaged bytes lead the unpickler to
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> WeightsError:
    """The error for a file that is not a checkpoint, or only a part of one."""
    first_sentence = re.split(r"\.\s|\n", str(error))[0] or type(error).__name__
    return WeightsError(
        f"{path} cannot be read as a checkpoint ({first_sentence}); "
        "it is truncated or of another format: delete it and get it again"
    )


def _stand_ins(path: Path) -> list[_Global]:
    """Stand-ins for the types in `path` that torch does not load by itself.

    Raises:
        WeightsError: one of them is not inert.
    """
    unknown = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    active = [name for name in unknown if not _INERT.fullmatch(name)]
    if active:
        raise WeightsError(f"{path} holds objects of {first_few(active)}; {_WAY_OUT}")
    return [(_stand_in(name), name) for name in unknown]


def _stand_in(name: str) -> _Callable:
    return _InertMapping if _MAPPING.fullmatch(name) else _Inert
