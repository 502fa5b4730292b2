"""The archive of a linear head that a user fitted: weight, bias, and facts about it in JSON."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt import strict_json
from dinov2rt.files import read_regular

_MOST_BYTES = 2**31


def write_own_head(
    file: Path,
    form: str,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    facts: Mapping[str, Any],
) -> None:
    """Write the .npz archive; `form` names its format and version."""
    text = json.dumps({"format": form, **facts})
    with file.open("wb") as stream:
        np.savez(stream, weight=weight, bias=bias, facts=np.array(text))


def read_own_head(
    file: Path, form: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, Any]]:
    """Finite weight and bias, and the facts, whose values are not checked.

    Raises:
        Exception: of the types of zipfile, json and numpy, if the file is damaged; ValueError if it
            is of another format, too large, or not finite.
    """
    with np.load(io.BytesIO(read_regular(file, _MOST_BYTES)), allow_pickle=False) as archive:
        if sum(member.file_size for member in archive.zip.infolist()) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes when unpacked")
        facts: Any = strict_json.parse(str(archive["facts"]).encode())
        weight, bias = (_floats(archive[name]) for name in ("weight", "bias"))
    if facts.pop("format") != form:
        raise ValueError("another format")
    return weight, bias, facts


def _floats(values: NDArray[Any]) -> NDArray[np.float32]:
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"it holds {values.dtype}")
    with np.errstate(over="ignore"):  # infinity says so below
        floats = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(floats).all():
        raise ValueError("it holds NaN or infinity")
    return floats
