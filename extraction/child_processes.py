"""Runs tasks in child processes; a child that dies or cannot start is an error at once.

The standard library's `ProcessPoolExecutor` needs two threads of its own, and waits for ever where
the system starts only one of them. Here each child belongs to one thread of a thread pool, which
waits for the child's answer or for its end. A child imports this package and not the caller's
script, which therefore needs no `if __name__ == "__main__":`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from dinov2rt.errors import Dinov2rtError
from dinov2rt.foreign import shown

_START_S = 300.0
"""The limit for a child to import its modules, which takes seconds on a slow disk."""

_END_S = 10.0

_CODE = (
    "import sys; sys.path[:] = {path!r}; "
    "from dinov2rt.extraction.child_processes import serve; serve({connection}, {stderr})"
)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ChildDiedError(Dinov2rtError):
    """A child process ended before it answered."""


class ChildProcesses(Executor):
    """Up to `count` processes, each started when it is first needed.

    Each calls `prepare(*arguments)` first. They end with `shutdown`, or with this process, even if
    it is killed: then their connection ends. SIGINT (Ctrl-C) does not reach them.
    """

    def __init__(self, count: int, prepare: Callable[..., None], *arguments: Any) -> None:
        self._threads = ThreadPoolExecutor(count)
        self._prepare, self._arguments = prepare, arguments
        self._own = threading.local()
        self._children: list[_Child] = []

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Call `fn` in a child. The future's error is a `ChildDiedError` if that ended instead.

        Raises:
            Dinov2rtError: the system starts no more threads.
        """
        try:
            return self._threads.submit(self._call, fn, args, kwargs)
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            raise _not_started(str(error)) from error

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the tasks that run, and end the processes."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        while self._children:
            self._children.pop().close()

    def process_ids(self) -> list[int]:
        """The processes that were started."""
        return [child.process.pid for child in self._children]

    def _call(self, fn: Callable[..., _T], args: Any, kwargs: Any) -> _T:
        result: _T = self._child().call(fn, args, kwargs)
        return result

    def _child(self) -> "_Child":
        """The process of this thread."""
        if not hasattr(self._own, "child"):
            self._own.child = _Child()
            self._children.append(self._own.child)
            self._own.child.call(self._prepare, self._arguments, {}, limit_s=_START_S)
        child: _Child = self._own.child
        return child


class _Child:
    """A process, and the connection to it."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as ours:
            try:
                self._connection, other_end = Pipe()
                ours.enter_context(other_end)
                stderr = ours.enter_context(_another_stderr())
                self.process = _start(other_end.fileno(), stderr)
            except OSError as error:
                raise _not_started(error.strerror or str(error)) from error

    def call(
        self, fn: Callable[..., Any], args: Any, kwargs: Any, limit_s: float | None = None
    ) -> Any:
        """The result of `fn` there; a child that takes longer than `limit_s` is killed."""
        try:
            self._connection.send((fn, args, kwargs))
            if not self._connection.poll(limit_s):
                self.process.kill()
            result, error = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ChildDiedError(f"a decoder process died{self._last_words()}") from error
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the process, which ends by itself unless it hangs."""
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        self.process.kill()
        self.process.wait()
        _stderr_of(self.process).close()

    def _last_words(self) -> str:
        """The last line of its stderr, for a message; it ended before it was ready."""
        self.process.kill()
        lines = _stderr_of(self.process).read().decode(errors="replace").split("\n")
        said = [line for line in lines if line.strip()]
        return f" ({shown(said[-1])})" if said else ""


def _start(connection: int, stderr: int) -> "subprocess.Popen[bytes]":
    code = _CODE.format(path=sys.path, connection=connection, stderr=stderr)
    with _interrupts_blocked():
        return subprocess.Popen(  # noqa: S603  # our own code
            [sys.executable, "-c", code],
            pass_fds=(connection, stderr),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )


def _stderr_of(process: "subprocess.Popen[bytes]") -> Any:
    return process.stderr


def serve(connection: int, stderr: int) -> None:
    """Run in a child: answer calls until the other end of `connection` is closed.

    After the first answer, standard error is redirected to `stderr`.
    """
    with contextlib.suppress(EOFError, OSError), Connection(connection) as calls:
        calls.send(_outcome(*calls.recv()))
        os.dup2(stderr, sys.__stderr__.fileno() if sys.__stderr__ else 2)
        while True:
            calls.send(_outcome(*calls.recv()))


def _outcome(fn: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Exception | None]:
    try:
        return fn(*args, **kwargs), None
    except Exception as error:  # raised where the call was made
        return None, error


@contextlib.contextmanager
def _another_stderr() -> Iterator[int]:
    """A second descriptor of the standard error, or of nothing where that is closed."""
    try:
        descriptor = os.dup(2)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _not_started(reason: str) -> Dinov2rtError:
    return Dinov2rtError(
        f"a decoder process or its thread cannot be started ({shown(reason)}); raise the limits of "
        "processes and memory (ulimit -u, ulimit -v), or use fewer decoders: 0 needs no process"
    )


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that start here ignore SIGINT (Ctrl-C); the parent shuts them down."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
