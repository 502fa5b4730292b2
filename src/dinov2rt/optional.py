"""Optional packages: imported where they are used; a missing one is one line with its extra."""

import importlib
import importlib.util
import re
from types import ModuleType

from dinov2rt.errors import MissingDependencyError


def is_older(version: str, least: tuple[int, ...]) -> bool:
    """Whether `version` is before `least`, such as (1, 31).

    A version that does not begin with as many numbers, such as a private build's, is not older.
    """
    parts = version_numbers(version)[: len(least)]
    return len(parts) == len(least) and parts < least


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version: (10, 14, 1) of "10.14.1.post1"."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            reason = f"is installed but does not import ({error})"
        else:
            reason = "is not installed"
        raise MissingDependencyError(
            f"{purpose} needs the package {module!r}, which {reason}; "
            f"pip install 'dinov2rt[{extra}]'"
        ) from error
