"""What a test needs besides the project: on a user's machine it is skipped, in CI it must run."""

import importlib
import os
import shutil
from types import ModuleType
from typing import NoReturn

import pytest

IN_CI = bool(os.environ.get("CI"))
"""Set by .ci/run, as by most services that run CI."""


def require_for_tests(module: str) -> ModuleType:
    """Import `module`, which `make setup` installs, or skip the test; in CI, fail."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        lacking(f"{module} is not installed ({error}); make setup installs it")


def program(*names: str) -> str:
    """The path of the first of `names` that is installed, or skip the test; in CI, fail."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or lacking(f"{' or '.join(names)} is not on the PATH")


def lacking(reason: str) -> NoReturn:
    """Skip the test that needs what is missing, and say why; in CI, fail."""
    if IN_CI:
        pytest.fail(f"in CI nothing may be missing: {reason}")
    pytest.skip(reason, allow_module_level=True)
