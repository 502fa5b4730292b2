"""The type of a verb, and the type of its result."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PASSED, CHECK_FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit statuses."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a verb: for programs (`document`, for --json) and for people (`text`)."""

    document: Mapping[str, Any]
    text: str
    status: int = PASSED


@dataclass(frozen=True, slots=True)
class Verb:
    """One command. `run` prints nothing to standard output; its result is printed."""

    name: str
    help: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], Outcome]


def status_of(passed: object) -> int:
    """The exit status of a check, by its truth value."""
    return PASSED if passed else CHECK_FAILED
