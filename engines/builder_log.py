"""Collects the builder's log and reads figures from it."""

import re
from collections.abc import Sequence
from typing import Any

from dinov2rt.errors import BuildError

_SCRATCH = re.compile(r"Total Activation Memory: (\d+)")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+)")
_LAYERS = "Layers:"


def make_logger(trt: Any) -> Any:
    """An `ILogger` that keeps all messages in `messages` and the errors also in `errors`.

    Nothing is printed: the figures are logged at level VERBOSE, among thousands of lines.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]  # no stubs; the module is a run-time value
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append(message)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

    return Logger()


def parse_scratch_bytes(messages: Sequence[str], num_profiles: int) -> tuple[int, ...]:
    """Scratch memory of each profile in bytes, which an execution context allocates.

    The builder compiles the network once per profile, in order, and logs the size each time.

    Raises:
        BuildError: the size was not logged exactly once per profile.
    """
    found = _figures(_SCRATCH, messages)
    if len(found) != num_profiles:
        raise _unreadable(f'"Total Activation Memory" {len(found)} times', num_profiles)
    return tuple(found)


def parse_weight_bytes(messages: Sequence[str]) -> int:
    """Memory of the plan's weights, in bytes.

    Raises:
        BuildError: the size was not logged exactly once.
    """
    found = _figures(_WEIGHTS, messages)
    if len(found) != 1:
        raise _unreadable(f'"Total Weights Memory" {len(found)} times', 1)
    return found[0]


def parse_layers(messages: Sequence[str]) -> str:
    """The plan's kernels, one per line, profile after profile.

    Raises:
        BuildError: the list was not logged exactly once.
    """
    found = [message for message in messages if message.startswith(_LAYERS)]
    if len(found) != 1:
        raise _unreadable(f"{len(found)} lists of layers", 1)
    return found[0]


def _figures(pattern: re.Pattern[str], messages: Sequence[str]) -> list[int]:
    return [int(match[1]) for message in messages if (match := pattern.match(message))]


def _unreadable(found: str, expected: int) -> BuildError:
    return BuildError(
        f"the builder's log holds {found}, expected {expected}; this version of TensorRT has "
        "another log format, so the plan cannot be checked; use a version that is supported"
    )
