"""SIGTERM and closed streams end a verb in one line, with the status that shells expect."""

import os
import subprocess
import sys
import threading

import pytest

from dinov2rt.cli import main
from dinov2rt.signals import Terminated

SIGTERM = """
import os, signal
from dinov2rt.signals import Terminated, terminable
before = signal.getsignal(signal.SIGTERM)
try:
    with terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
except Terminated:
    assert signal.getsignal(signal.SIGTERM) is before
    print("terminated")
"""


def test_sigterm_is_an_interrupt_of_its_own_and_the_handler_is_put_back() -> None:
    """In a process of its own, as a verb is: this one holds a dozen libraries and their threads."""
    done = subprocess.run([sys.executable, "-c", SIGTERM], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "terminated\n", "")


@pytest.mark.parametrize(("error", "status"), [(Terminated, 143), (KeyboardInterrupt, 130)])
def test_the_status_says_which_signal_it_was(
    error: type[KeyboardInterrupt],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop() -> None:
        raise error

    monkeypatch.setattr("dinov2rt.cli.info._variants", stop)
    assert main(["info"]) == status
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_verbs_run_in_other_threads_as_well() -> None:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(main(["info"])))
    thread.start()
    thread.join()
    assert statuses == [0]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "| head -1"])
def test_closed_streams_are_no_error(closed: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"set -o pipefail; {sys.executable} -m dinov2rt info {closed}"
    done = subprocess.run(
        ["/bin/bash", "-c", command], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
