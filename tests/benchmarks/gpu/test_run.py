import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dinov2rt.benchmarks.gpu import run as gpu_run
from dinov2rt.benchmarks.gpu.arguments import asked_of, parser
from dinov2rt.benchmarks.gpu.contestants import contestants_for
from dinov2rt.benchmarks.gpu.run import (
    _PACKAGES,
    StepOutcome,
    missing_packages,
    run,
    take,
)
from dinov2rt.benchmarks.gpu.steps import Asked, Step, steps
from dinov2rt.benchmarks.results import Cell

ASKED = Asked("synthetic:0", "1,8", "224", ("--peers", "eager"), thorough=True)
TASKS = [
    "export",
    "build",
    "build open",
    "verify onnxruntime fp16",
    "verify onnxruntime fp32",
    "verify tensorrt fp16",
    "verify auto",
    "bench",
    "report",
]


def words_of(task: str, out: Path, asked: Asked = ASKED) -> str:
    (found,) = [step.command for step in steps(out, ["v"], asked) if step.task == task]
    return found


def test_a_step_that_fails_is_noted_down_with_its_reason_and_all_that_it_said(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log.txt"
    step = Step("v", "verify", ("verify", str(tmp_path / "gone")))
    outcome = take(step, log, "A100")
    assert (outcome.name, outcome.machine, outcome.status) == ("v verify", "A100", 2)
    assert "gone is not a bundle" in outcome.said
    assert outcome.said in log.read_text()
    assert outcome.seconds > 0


def test_a_step_that_takes_too_long_is_ended_and_has_failed(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    outcome = take(Step("v", "doctor", ("doctor",)), log, "A100", timeout_s=0.01)
    assert (outcome.status, outcome.document) == (124, None)
    assert outcome.said == f"ended after --step-timeout 0.01 seconds; see {log}"


def test_what_a_step_says_is_its_document(tmp_path: Path) -> None:
    outcome = take(Step("v", "doctor", ("doctor",)), tmp_path / "log.txt", "A100", timeout_s=100)
    assert outcome.document["machine"]["system"]


def test_accuracy_of_all_comes_before_the_speed_of_one(tmp_path: Path) -> None:
    names = [step.name for step in steps(tmp_path, ["v", "w"], ASKED)]
    parts = (TASKS[:1], TASKS[1:-2], TASKS[-2:])
    assert names == [f"{v} {t}" for tasks in parts for v in "vw" for t in tasks]


def test_within_a_budget_all_variants_are_timed_by_one_process(tmp_path: Path) -> None:
    asked = replace(ASKED, thorough=False, budget_s=90)
    *_, cells, memory = steps(tmp_path, ["v", "w"], asked)
    assert cells.command == (
        f"python -m dinov2rt.benchmarks.gpu.cells {tmp_path} {tmp_path}/bundles/v "
        f"{tmp_path}/bundles/w --budget 90"
    )
    assert memory.command == f"python -m dinov2rt.benchmarks.gpu.memory {tmp_path}/bundles/v"


def test_memory_is_measured_of_the_largest_variant(tmp_path: Path) -> None:
    names = ["dinov2_vits14", "dinov2_vitg14", "dinov2_vitb14"]
    *_, memory = steps(tmp_path, names, replace(ASKED, thorough=False))
    assert memory.arguments == (f"{tmp_path}/bundles/dinov2_vitg14",)


def test_all_peers_are_asked_for_before_the_budget(tmp_path: Path) -> None:
    asked = replace(ASKED, thorough=False, all_peers=True, budget_s=90)
    *_, cells, _ = steps(tmp_path, ["v"], asked)
    assert cells.arguments[-3:] == ("--all-peers", "--budget", "90")


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (1, ["eager-half", "compile-reduce-overhead-half"]),
        (32, ["eager-half", "compile-autocast", "compile-half"]),
    ],
)
def test_peers_are_timed_as_they_matter_for_a_batch(batch: int, names: list[str]) -> None:
    assert contestants(batch) == ["eager", "dinov2rt-onnxruntime-fp16", *names]


def test_all_peers_are_every_mode_at_equal_accuracy_and_at_the_fastest() -> None:
    modes = ("eager", *(f"compile{mode}" for mode in ("", "-reduce-overhead", "-max-autotune")))
    every = {f"{mode}-{kind}" for mode, kind in product(modes, ("half", "autocast"))}
    for batch in (1, 32):
        found = contestants(batch, all_peers=True)
        assert set(found[2:]) == every
        assert len(found) == len(every) + 2


def contestants(batch: int, **options: bool) -> list[str]:
    """Names alone: nothing is loaded before it is opened."""
    task: Any = SimpleNamespace(bundle=Path("v"), manifest=None)
    return [each.name for each in contestants_for(Cell("v", batch, 224, 224), task, **options)]


def test_the_cells_get_what_is_left_of_the_budget(
    machine: "Machine", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 70.0, 500.0])
    monkeypatch.setattr(gpu_run.time, "monotonic", lambda: next(clock))
    machine.tasks(tmp_path, replace(ASKED, thorough=False, budget_s=90))
    notes = json.loads((tmp_path / "steps.json").read_text())
    assert notes["all cells"]["command"].endswith("--budget 20")


def test_a_plan_takes_the_largest_batch_and_every_golden_image(tmp_path: Path) -> None:
    asked = replace(ASKED, batches="128,8", sizes="224,98x700")
    assert "--max-batch 8 --max-size 518 --target current" in words_of("build", tmp_path)
    assert "--max-batch 128 --max-size 700 --target open" in words_of("build open", tmp_path, asked)


class Machine:
    """Takes steps as a machine would on which those in `broken` fail."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.taken: list[str] = []

    def take(self, step: Step, log: Path, machine: str, timeout_s: float | None) -> StepOutcome:  # noqa: ARG002
        self.taken.append(step.task)
        status = int(step.task in self.broken)
        if step.made is not None and status == 0:
            step.made.parent.mkdir(parents=True, exist_ok=True)
            step.made.touch()
        return StepOutcome(step.name, step.command, step.instead_of, machine, status, 0.1, "", None)

    def tasks(self, out: Path, asked: Asked = ASKED) -> list[str]:
        """What a run takes."""
        self.taken = []
        run(out, ["v"], asked)
        return self.taken


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(gpu_run, "take", machine.take)
    return machine


def without(*tasks: str) -> list[str]:
    return [task for task in TASKS if task not in tasks]


def test_what_passed_is_not_done_again_and_what_failed_is(machine: Machine, tmp_path: Path) -> None:
    machine.broken = {"verify auto"}
    assert machine.tasks(tmp_path) == without("build open")
    assert machine.tasks(tmp_path) == ["verify auto"]
    machine.broken.clear()
    assert machine.tasks(tmp_path) == ["verify auto"]
    assert machine.tasks(tmp_path) == []


def test_what_is_asked_for_differently_is_done_again(machine: Machine, tmp_path: Path) -> None:
    machine.tasks(tmp_path)
    assert machine.tasks(tmp_path, replace(ASKED, weights="synthetic:1")) == without("build open")
    machine.tasks(tmp_path)
    assert machine.tasks(tmp_path, replace(ASKED, bench_options=())) == ["bench", "report"]
    machine.tasks(tmp_path)
    # a larger batch needs another plan, which is then to be verified
    assert machine.tasks(tmp_path, replace(ASKED, batches="32")) == without("export", "build open")


def test_another_gpu_starts_anew(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.tasks(tmp_path)
    monkeypatch.setattr(gpu_run, "_machine", lambda: "H100, driver 580.65.06")
    assert machine.tasks(tmp_path) == without("build open")


def test_what_was_made_and_is_gone_is_made_again(machine: Machine, tmp_path: Path) -> None:
    machine.tasks(tmp_path)
    (tmp_path / "v.json").unlink()
    assert machine.tasks(tmp_path) == ["bench", "report"]
    (tmp_path / "bundles/v/manifest.json").unlink()
    assert machine.tasks(tmp_path) == without("build open")


def test_a_result_that_nobody_noted_down_is_not_trusted(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "v.json").touch()
    assert machine.tasks(tmp_path) == without("build open")


def test_a_target_that_cannot_be_built_is_left_open_and_marked(
    machine: Machine, tmp_path: Path
) -> None:
    machine.broken = {"build"}
    assert machine.tasks(tmp_path) == TASKS
    notes = json.loads((tmp_path / "steps.json").read_text())
    assert notes["v build open"]["instead_of"] == "v build"
    assert notes["v build"]["instead_of"] is None
    assert machine.tasks(tmp_path) == ["build"], "nothing was built anew"


@pytest.mark.parametrize("damage", ["", "{", "[]", "\x00"])
def test_damaged_notes_are_started_anew(machine: Machine, tmp_path: Path, damage: str) -> None:
    (tmp_path / "steps.json").write_text(damage)
    assert machine.tasks(tmp_path) == without("build open")
    assert json.loads((tmp_path / "steps.json").read_text()).keys() == {
        f"v {task}" for task in without("build open")
    }
    assert not list(tmp_path.glob("*.partial"))


def test_a_failure_ends_its_own_step_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run(tmp_path, ["dinov2_vits15"], ASKED)
    notes = json.loads((tmp_path / "steps.json").read_text())
    assert len(notes) == len(TASKS)
    assert {note["status"] for note in notes.values()} == {2}
    assert "nearest is 'dinov2_vits14'" in capsys.readouterr().out
    logs = {log.name for log in (tmp_path / "logs").iterdir()}
    assert logs == {f"dinov2_vits15-{task.replace(' ', '-')}.txt" for task in TASKS}


def test_missing_packages_are_named_with_the_command_that_adds_them() -> None:
    of_development = {module: name for module, name in _PACKAGES.items() if module != "cuda"}
    assert missing_packages(of_development) is None
    assert missing_packages({"numpy": "numpy", "no_such": "no-such", "nor_this": "nor-this"}) == (
        f"{sys.executable} lacks no_such, nor_this, and steps would fail; "
        f"{sys.executable} -m pip install no-such nor-this"
    )


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("", "--peers eager,compile"),
        ("--peers none --seconds 2.5 --turns 4", "--peers none --seconds 2.5 --turns 4"),
    ],
)
def test_bench_is_told_what_was_asked_for(tmp_path: Path, given: str, options: str) -> None:
    arguments = parser().parse_args([str(tmp_path), *given.split()])
    asked = replace(ASKED, bench_options=asked_of(arguments).bench_options)
    assert words_of("bench", tmp_path, asked) == (
        f"dinov2rt bench {tmp_path}/bundles/v --device cuda --batch 1,8 --size 224 "
        f"--out {tmp_path}/v.json {options}"
    )


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dinov2rt.benchmarks.gpu.run", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize("arguments", [("--batch", "1,x"), ("--size", ""), ("--turns", "many")])
def test_bad_options_are_refused_before_anything_is_done(
    tmp_path: Path, arguments: tuple[str, str]
) -> None:
    process = start(str(tmp_path / "out"), *arguments)
    assert f"argument {arguments[0]}: " in process.communicate()[1].splitlines()[-1]
    assert process.returncode == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="it is looked for in /proc")
def test_a_run_that_is_ended_takes_its_step_with_it(tmp_path: Path) -> None:
    process = start(str(tmp_path), "--variants", "dinov2_vitl14")
    log = tmp_path / "logs" / "dinov2_vitl14-export.txt"
    while not log.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (step,) = children(process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()
    assert process.returncode == 1, said
    with pytest.raises(ProcessLookupError):
        os.kill(step, 0)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that it starts, as Linux tells, once there are any."""
    found: list[int] = []
    while not found and process.poll() is None:
        files = Path(f"/proc/{process.pid}/task").glob("*/children")
        found = [int(child) for file in files for child in file.read_text().split()]
    return found
