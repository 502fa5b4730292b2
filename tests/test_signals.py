"""SIGTERM and closed streams end a verb in one line, with the status that shells expect."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

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


SERVICE = """
import os, signal, sys, threading
import numpy as np
import PIL.Image, pyarrow.dataset, pyarrow.parquet
import tensorrt_rtx
import dinov2rt

if "everything" in sys.argv:
    import faiss, onnxscript, ray, sklearn, torch, transformers

class Log(tensorrt_rtx.ILogger):
    def __init__(self):
        tensorrt_rtx.ILogger.__init__(self)
    def log(self, severity, message):
        pass

builder = tensorrt_rtx.Builder(Log())
network = builder.create_network(0)
pixels = network.add_input("pixels", tensorrt_rtx.float32, (1, 3, 14, 14))
network.mark_output(network.add_cast(pixels, tensorrt_rtx.float16).get_output(0))
assert builder.build_serialized_network(network, builder.create_builder_config()) is not None
models = [
    dinov2rt.load(sys.argv[1], backend=name, device="cpu") for name in ("onnxruntime", "openvino")
]
images = np.zeros((2, 56, 42, 3), np.uint8)
signals, ended = 0, threading.Event()

def serve(model):
    while not ended.is_set():
        model(images)

def note(number, frame):
    global signals
    signals += 1
    os.write(1, b"%d\\n" % signals)  # print is not reentrant: the next signal may come within it

signal.signal(signal.SIGTERM, note)
# An error in this thread ends the process, and with it the test.
threads = [threading.Thread(target=serve, args=(model,), daemon=True) for model in models]
for thread in threads:
    thread.start()
print("ready", flush=True)
while signals < 20:
    models[signals % 2](images)
ended.set()
for thread in threads:
    thread.join()
for model in models:
    model.close()
"""


@pytest.mark.parametrize(
    ("times", "libraries"),
    [(1, "backends"), pytest.param(20, "everything", marks=pytest.mark.slow)],
)
def test_a_service_that_has_loaded_every_backend_gets_sigterm(
    pooling_bundle: Path, times: int, libraries: str
) -> None:
    for _ in range(times):
        command = [sys.executable, "-c", SERVICE, str(pooling_bundle), libraries]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
            assert service.stdout is not None
            assert service.stdout.readline() == "ready\n"
            for number in range(1, 21):
                service.send_signal(signal.SIGTERM)
                assert service.stdout.readline() == f"{number}\n"
        assert service.returncode == 0


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
