"""SIGTERM and closed streams end a verb in one line, with the status that shells expect."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from dinov2rt.cli import main
from dinov2rt.signals import Terminated, terminable


def test_sigterm_is_an_interrupt_of_its_own_and_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert signal.getsignal(signal.SIGTERM) is before


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
