"""Optional packages: imported where they are used, missed with one line."""

import importlib
import importlib.util
from types import ModuleType

from dinov2rt.errors import MissingDependencyError


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
