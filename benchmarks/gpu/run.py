"""Runs all measurements on a machine with an NVIDIA GPU in one command: `make bench-gpu`.

    python -m dinov2rt.benchmarks.gpu.run OUT [--variants V,...] [--budget 600]

First, all variants are exported in parallel on the CPU. Then, for each variant, a plan is built for
this GPU, and the accuracy of every available backend is checked. Last, the latency of all variants
is measured beside eager and compiled PyTorch, the most important cells first, until the budget is
spent.

Every step is a process of its own. OUT/steps.json has the last line of each step's log, OUT/logs
the complete logs. A step that fails, even one that crashes the driver, does not stop the others. An
interrupted run can be resumed: a step that passed is skipped, unless a step that it builds on ran
again, or its command changed.

It needs the Python that has torch on that machine, and the packages of `dinov2rt[bench]`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dinov2rt.benchmarks.gpu.arguments import asked_of, parser
from dinov2rt.benchmarks.gpu.steps import EXPORT, Asked, Step, steps
from dinov2rt.errors import BackendError, MissingDependencyError
from dinov2rt.files import replacing
from dinov2rt.runtime.cpu import usable_cores
from dinov2rt.runtime.gpu.cuda import find_gpu

_CORES_AN_EXPORT = 4
_PASSED, _TIMED_OUT = 0, 124  # 124 is the status of timeout(1)

_SAME_NAME = (
    "jinja2 matplotlib msgspec numpy onnx onnxscript psutil safetensors threadpoolctl torch tqdm"
)
_PACKAGES = {name: name for name in _SAME_NAME.split()} | {
    "cuda": "cuda-python",
    "ml_dtypes": "ml-dtypes",
    "onnx_ir": "onnx-ir",
    "onnxruntime": "onnxruntime-gpu",
    "PIL": "pillow",
}
"""Modules that the steps import, and the packages that provide them."""

_running: set[int] = set()
"""Process groups of the running steps."""

_ending = threading.Event()
"""Set when this run is being ended: a step that starts meanwhile ends at once."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The result of a step: its exit status, the last line of its log, and its JSON document."""

    name: str
    command: str
    instead_of: str | None
    machine: str
    status: int
    seconds: float
    said: str
    document: Any


def take(step: Step, log: Path, machine: str, timeout_s: float | None = None) -> StepOutcome:
    """Run a step to its end, or for at most `timeout_s`; its log goes to the file `log`."""
    started = time.perf_counter()
    try:
        status, answer = _run_alone(step, log, timeout_s)
        said = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
    except subprocess.TimeoutExpired:
        status, answer = _TIMED_OUT, ""
        said = f"ended after --step-timeout {timeout_s:g} seconds; see {log}"
    return StepOutcome(
        name=step.name,
        command=step.command,
        instead_of=step.instead_of,
        machine=machine,
        status=status,
        seconds=round(time.perf_counter() - started, 1),
        said=said,
        document=_document(answer),
    )


def _run_alone(step: Step, log: Path, timeout_s: float | None) -> tuple[int, str]:
    """Run a process; return its status and output, and end all processes that it started."""
    json_output = ["--json"] if step.module == "dinov2rt" else []
    command = [sys.executable, "-m", step.module, *step.arguments, *json_output]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as answer,
        log.open("w", encoding="utf-8") as said,
        subprocess.Popen(  # noqa: S603
            command, stdout=answer, stderr=said, start_new_session=True
        ) as process,
    ):
        _running.add(process.pid)
        if _ending.is_set():  # who set it may have looked at `_running` before this step was in it
            _kill(process.pid)
        try:
            status = process.wait(timeout_s)
        finally:
            _kill(process.pid)
            _running.discard(process.pid)
        answer.seek(0)
        return status, answer.read()


def run(out: Path, names: Sequence[str], asked: Asked) -> bool:
    """Run every step that is not done yet; true if all passed."""
    ends = time.monotonic() + asked.budget_s
    progress = _Progress(out, asked)
    progress.agenda = list(steps(out, names, asked))
    exports = [step for step in progress.agenda if step.task == EXPORT]
    others = progress.agenda[len(exports) :]
    _side_by_side(progress.take_all, [[step] for step in exports])
    if not asked.has_tensorrt:  # with TensorRT, builds need the GPU alone: they time kernels
        checks = [[step for step in others if step.variant == name] for name in names]
        _side_by_side(progress.take_all, [] if asked.thorough else checks)
    for step in others:
        if step.task == "cells":
            left_s = max(0.0, ends - time.monotonic())
            step = _within(step, left_s)
        progress.take_all([step])
    return progress.all_passed()


class _Progress:
    """The results so far, kept in OUT/steps.json. Several threads may run steps."""

    def __init__(self, out: Path, asked: Asked) -> None:
        self._logs, self._notes = out / "logs", out / "steps.json"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._machine, self._outcomes = _machine(), _read(self._notes)
        self._asked, self._lock = asked, threading.Lock()
        self._taken: set[str] = set()
        self.agenda: list[Step] = []

    def take_all(self, steps_in_order: Sequence[Step]) -> None:
        """Run each step that is not done, and record its outcome."""
        for step in steps_in_order:
            self._take_if_due(step)

    def _take_if_due(self, step: Step) -> None:
        if step.name in self._taken or not _is_due(step, self._outcomes, self._machine):
            return
        self._taken.add(step.name)
        log = self._logs / f"{step.name.replace(' ', '-')}.txt"
        outcome = take(step, log, self._machine, self._asked.step_timeout_s)
        with self._lock:
            self._outcomes[step.name] = asdict(outcome)
            if step.is_built_on and outcome.status == _PASSED:
                later = self.agenda[self.agenda.index(step) + 1 :]
                _forget(self._outcomes, step.variant, later)
            _write(self._notes, self._outcomes)
            print(
                f"{outcome.status:>4} {outcome.seconds:8.1f} s  {step.name}: {outcome.said}",
                flush=True,
            )

    def all_passed(self) -> bool:
        """Whether every recorded step passed."""
        names = [step.name for step in self.agenda if step.name in self._outcomes]
        return all(self._outcomes[name]["status"] == _PASSED for name in names)


def _side_by_side(
    take_all: Callable[[Sequence[Step]], None], queues: Sequence[Sequence[Step]]
) -> None:
    """Run each queue in a thread. If this thread is interrupted, all steps are ended."""
    pool = ThreadPoolExecutor(max(1, usable_cores() // _CORES_AN_EXPORT))
    try:
        list(pool.map(take_all, queues))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        _ending.set()
        for process in tuple(_running):
            _kill(process)
        raise
    finally:
        pool.shutdown()


def _kill(process: int) -> None:
    """End a step and every process that it started."""
    with contextlib.suppress(ProcessLookupError):  # usually, all of them have ended
        os.killpg(process, signal.SIGKILL)


def _within(step: Step, seconds: float) -> Step:
    """The step with the rest of the budget; a result with another budget does not count as done."""
    return replace(step, arguments=(*step.arguments[:-1], f"{seconds:g}"))


def _is_due(step: Step, outcomes: dict[str, Any], machine: str) -> bool:
    """Whether `step` must run: it did not pass yet with this command on this machine."""
    if step.instead_of is not None and outcomes[step.instead_of]["status"] == _PASSED:
        return False
    before = outcomes.get(step.name, {})
    facts = [before.get(fact) for fact in ("status", "command", "machine")]
    is_gone = step.made is not None and not step.made.exists()
    return is_gone or facts != [_PASSED, step.command, machine]


def _forget(outcomes: dict[str, Any], variant: str, later: Sequence[Step]) -> None:
    """Drop the outcomes of `later` steps, whose inputs have changed."""
    for step in later:
        if step.variant == variant:
            outcomes.pop(step.name, None)


def _machine() -> str:
    """GPU and driver; outcomes are valid only for this combination."""
    try:
        gpu = find_gpu()
    except (BackendError, MissingDependencyError) as error:
        return str(error)
    return f"{gpu.name}, driver {gpu.driver}"


def _read(notes: Path) -> dict[str, Any]:
    """The outcomes so far; empty if the file is missing or damaged."""
    text = ""
    with contextlib.suppress(OSError):
        text = notes.read_text(encoding="utf-8", errors="replace")
    document = _document(text)
    return document if isinstance(document, dict) else {}


def _write(notes: Path, outcomes: dict[str, Any]) -> None:
    with replacing(notes) as partial:
        partial.write_text(json.dumps(outcomes, indent=1), encoding="utf-8")


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # the step failed before it printed its document
        return None


def missing_packages(modules: dict[str, str]) -> str | None:
    """The `modules` that are missing, with the command that installs them; None if none is."""
    missing = [module for module in modules if find_spec(module) is None]
    if not missing:
        return None
    packages = " ".join(modules[module] for module in missing)
    return (
        f"{sys.executable} lacks {', '.join(missing)}, and steps would fail; "
        f"{sys.executable} -m pip install {packages}"
    )


def main() -> int:
    """Print a line per step; return 0 if all passed, 2 if packages are missing, otherwise 1."""
    given = parser().parse_args()
    if (reason := missing_packages(_PACKAGES)) is not None:
        print(reason, file=sys.stderr)
        return 2
    for end in (signal.SIGTERM, signal.SIGHUP):  # exiting also ends the step, see _run_alone
        signal.signal(end, lambda *_: sys.exit(1))
    return 0 if run(given.out, given.variants.split(","), asked_of(given)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
