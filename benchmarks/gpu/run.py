"""All that a machine with an NVIDIA GPU is wanted for, in one command: `make bench-gpu`.

    python -m dinov2rt.benchmarks.gpu.run OUT [--variants V,...] [--weights synthetic:0]

For each variant: export, a plan for this GPU, the accuracy of every backend that runs; then, for
each, latency beside eager and compiled PyTorch. Every step is a process of its own and is noted
down in OUT/steps.json with what it said last (all of it is in OUT/logs), so that one that fails, or
takes the driver with it, ends nothing but itself. A run that was cut off goes on: a step that
passed is not taken again, unless something that it builds on was, or it was asked for differently.

It needs the python that has torch on that machine, and the packages of `dinov2rt[bench]`.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dinov2rt.benchmarks.gpu.steps import Asked, Step, steps
from dinov2rt.bundle.variants import variants
from dinov2rt.errors import BackendError, MissingDependencyError
from dinov2rt.runtime.gpu.cuda import find_gpu

_PASSED, _TIMED_OUT = 0, 124  # the latter as timeout(1) says it

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
"""Modules that the steps import, and what brings them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended: its exit status, the last line it said, and its JSON document."""

    name: str
    command: str
    instead_of: str | None
    machine: str
    status: int
    seconds: float
    said: str
    document: Any


def take(step: Step, log: Path, machine: str, timeout_s: float | None = None) -> Outcome:
    """Run a step to its end, or until `timeout_s` is over; `log` gets all that it says."""
    started = time.perf_counter()
    try:
        status, answer = _run_alone(step.arguments, log, timeout_s)
        said = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
    except subprocess.TimeoutExpired:
        status, answer = _TIMED_OUT, ""
        said = f"ended after --step-timeout {timeout_s:g} seconds; see {log}"
    return Outcome(
        name=step.name,
        command=step.command,
        instead_of=step.instead_of,
        machine=machine,
        status=status,
        seconds=round(time.perf_counter() - started, 1),
        said=said,
        document=_document(answer),
    )


def _run_alone(arguments: Sequence[str], log: Path, timeout_s: float | None) -> tuple[int, str]:
    """Exit status and output of a process; however it ends, none that it started is left."""
    command = [sys.executable, "-m", "dinov2rt", *arguments, "--json"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as answer,
        log.open("w", encoding="utf-8") as said,
        subprocess.Popen(  # noqa: S603
            command, stdout=answer, stderr=said, start_new_session=True
        ) as process,
    ):
        try:
            status = process.wait(timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):  # the rule: all of them are gone
                os.killpg(process.pid, signal.SIGKILL)
        answer.seek(0)
        return status, answer.read()


def run(out: Path, names: Sequence[str], asked: Asked) -> bool:
    """Take every step that is not done yet; true when all of them passed."""
    logs, notes = out / "logs", out / "steps.json"
    logs.mkdir(parents=True, exist_ok=True)
    machine, outcomes = _machine(), _read(notes)
    agenda = list(steps(out, names, asked))
    for index, step in enumerate(agenda):
        if not _is_due(step, outcomes, machine):
            continue
        log = logs / f"{step.name.replace(' ', '-')}.txt"
        outcome = take(step, log, machine, asked.step_timeout_s)
        outcomes[step.name] = asdict(outcome)
        if step.is_built_on and outcome.status == _PASSED:
            _forget(outcomes, step.variant, agenda[index + 1 :])
        _write(notes, outcomes)
        print(
            f"{outcome.status:>4} {outcome.seconds:8.1f} s  {step.name}: {outcome.said}",
            flush=True,
        )
    taken = [outcomes[step.name] for step in agenda if step.name in outcomes]
    return all(outcome["status"] == _PASSED for outcome in taken)


def _is_due(step: Step, outcomes: dict[str, Any], machine: str) -> bool:
    """Whether it is still to be taken, here and as it was asked for."""
    if step.instead_of is not None and outcomes[step.instead_of]["status"] == _PASSED:
        return False
    before = outcomes.get(step.name, {})
    told = [before.get(fact) for fact in ("status", "command", "machine")]
    is_gone = step.made is not None and not step.made.exists()
    return is_gone or told != [_PASSED, step.command, machine]


def _forget(outcomes: dict[str, Any], variant: str, later: Sequence[Step]) -> None:
    """Drop what was found out with something that is no longer there."""
    for step in later:
        if step.variant == variant:
            outcomes.pop(step.name, None)


def _machine() -> str:
    """What outcomes hold for; what another GPU or another driver said tells nothing here."""
    try:
        gpu = find_gpu()
    except (BackendError, MissingDependencyError) as error:
        return str(error)
    return f"{gpu.name}, driver {gpu.driver}"


def _read(notes: Path) -> dict[str, Any]:
    """The outcomes so far; none where the file is missing or damaged."""
    text = ""
    with contextlib.suppress(OSError):
        text = notes.read_text(encoding="utf-8", errors="replace")
    document = _document(text)
    return document if isinstance(document, dict) else {}


def _write(notes: Path, outcomes: dict[str, Any]) -> None:
    partial = notes.with_suffix(".partial")
    partial.write_text(json.dumps(outcomes, indent=1), encoding="utf-8")
    partial.replace(notes)


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a step that failed before it had anything to say
        return None


def missing_packages(modules: dict[str, str]) -> str | None:
    """Which of `modules` are not installed, and the command that adds them; None if all are."""
    missing = [module for module in modules if find_spec(module) is None]
    if not missing:
        return None
    packages = " ".join(modules[module] for module in missing)
    return (
        f"{sys.executable} has no {', '.join(missing)}, without which steps would fail; "
        f"{sys.executable} -m pip install {packages}"
    )


def main() -> int:
    """Print a line a step; the exit status is 0 when all passed, 2 when none can, else 1."""
    given = _parser().parse_args()
    if (reason := missing_packages(_PACKAGES)) is not None:
        print(reason, file=sys.stderr)
        return 2
    for end in (signal.SIGTERM, signal.SIGHUP):  # which ends the step as well, see _run_alone
        signal.signal(end, lambda *_: sys.exit(1))
    asked = Asked(
        weights=given.weights,
        batches=given.batch,
        sizes=given.size,
        bench_options=_bench_options(given),
        step_timeout_s=given.step_timeout,
    )
    return 0 if run(given.out, given.variants.split(","), asked) else 1


def _bench_options(given: argparse.Namespace) -> tuple[str, ...]:
    options = ["--peers", given.peers]
    if given.seconds is not None:
        options += ["--seconds", f"{given.seconds:g}"]
    if given.turns is not None:
        options += ["--turns", f"{given.turns}"]
    return tuple(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_run", description="prove and measure every variant on the GPU of this machine"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of bundles and results")
    parser.add_argument(
        "--variants",
        default=",".join(variant.name for variant in variants()),
        metavar="V,...",
        help="in this order (default: all, small to giant)",
    )
    parser.add_argument("--weights", default="synthetic:0", help="as for export")
    parser.add_argument("--batch", type=_list, default="1,8,32,128", help="images a call")
    parser.add_argument("--size", type=_list, default="224,518", help="sides")
    parser.add_argument("--peers", default="eager,compile", metavar="P,...", help="as for bench")
    parser.add_argument("--seconds", type=float, help="as for bench")
    parser.add_argument("--turns", type=int, help="as for bench")
    parser.add_argument(
        "--step-timeout",
        type=float,
        metavar="S",
        help="seconds after which a step is ended, and has failed (default: none)",
    )
    return parser


def _list(text: str) -> str:
    """`text` as it is, if it is a list of numbers or of sizes."""
    if re.fullmatch(r"(\d{1,5}(x\d{1,5})?,)*\d{1,5}(x\d{1,5})?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed are numbers as in 1,8 or 224,518x266")
    return text


if __name__ == "__main__":
    raise SystemExit(main())
