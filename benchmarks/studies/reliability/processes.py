"""Verbs in processes of their own, and how they end."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_MOST_S = 600
_ABORTS = (
    (-signal.SIGABRT, "std::bad_alloc"),
    (-signal.SIGABRT, "failed to register TLS destructor: out of memory"),
    (127, "cannot allocate memory for thread-local data: ABORT"),
)
"""How C++ and glibc end a process for want of memory: the status, and what they say."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended."""

    status: int
    said: str

    @property
    def aborted_for_memory(self) -> bool:
        """Whether a library in C or C++ ended the process for want of memory, and said so."""
        return any(self.status == status and text in self.said for status, text in _ABORTS)

    def must(self, *statuses: int) -> None:
        """Refuse another status, or more than a line for what went wrong.

        Raises:
            AssertionError: it ended in another way.
        """
        bad = [word for word in ("unexpected", "Traceback") if word in self.said]
        errors = [line for line in self.said.splitlines() if line.startswith("dinov2rt: error")]
        lists_backends = "runs here" in (errors or [""])[0]  # a line for each follows
        if self.status not in statuses or bad or (len(errors) > 1 and not lists_backends):
            raise AssertionError(f"status {self.status}, allowed {statuses}: {self.said[-500:]!r}")


def start(
    arguments: Sequence[str],
    *,
    limits: Mapping[int, int] | None = None,
    environment: Mapping[str, str | None] | None = None,
    user: int | None = None,
) -> "subprocess.Popen[str]":
    """The verb in a process of its own; a variable of None is not there.

    `user` is the number of another user, who may read every file; only root can ask for one.
    """
    changed = environment or {}
    own = {name: value for name, value in os.environ.items() if name not in changed}
    own |= {name: value for name, value in changed.items() if value is not None}

    def restrict() -> None:
        for limit, value in (limits or {}).items():
            resource.setrlimit(limit, (value, value))

    return subprocess.Popen(  # noqa: S603
        [*_as_user(user), sys.executable, "-m", "dinov2rt", *arguments],
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=restrict,  # no threads here
    )


def _as_user(user: int | None) -> list[str]:
    if user is None:
        return []
    reads = "-all,+dac_read_search"
    sets = [f"--{kind}={reads}" for kind in ("inh-caps", "ambient-caps")]
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *sets, "--"]


def end(process: "subprocess.Popen[str]") -> Ended:
    """Wait for it."""
    try:
        said, _ = process.communicate(timeout=_MOST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return Ended(-9, f"hangs; {process.communicate()[0]}")
    return Ended(process.returncode, said)
