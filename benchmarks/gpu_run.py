"""All that a machine with an NVIDIA GPU is wanted for, in one command: `make bench-gpu`.

    python -m dinov2rt.benchmarks.gpu_run OUT [--variants V,...] [--weights synthetic:0]

For each variant: export, a plan for this GPU, the accuracy of every backend that runs, then latency
beside eager and compiled PyTorch. Every step is a process of its own and is noted down in
OUT/steps.json with what it said, so that one that fails, or takes the driver with it, ends nothing
but itself. Steps that were done before are not done again: a run that was cut off goes on.

It needs the python that has torch on that machine, and the packages of `dinov2rt[bench]`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dinov2rt.runtime.variants import variants

_BACKENDS = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "fp16"),
    ("tensorrt", "fp16"),
)
_PASSED = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One command of dinov2rt, `made` being the file whose presence says that it was done."""

    name: str
    arguments: tuple[str, ...]
    made: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended: its exit status, the last line it said, and its JSON document."""

    name: str
    command: str
    status: int
    seconds: float
    said: str
    document: Any


def steps(out: Path, variant: str, weights: str, grid: tuple[str, str]) -> Iterator[Step]:
    """What is to be done for one variant, in order."""
    bundle, (batches, sizes) = out / "bundles" / variant, grid
    yield Step(
        f"{variant} export",
        ("export", variant, "--weights", weights, "--out", str(bundle)),
        made=bundle / "manifest.json",
    )
    yield Step(f"{variant} build", ("build", str(bundle), "--target", "current"))
    for backend, precision in _BACKENDS:
        choice = ("--device", "cuda", "--backend", backend, "--precision", precision)
        yield Step(f"{variant} verify {backend} {precision}", ("verify", str(bundle), *choice))
    yield Step(f"{variant} verify auto", ("verify", str(bundle)))
    result = out / f"{variant}.json"
    shape = ("--device", "cuda", "--batch", batches, "--size", sizes, "--out", str(result))
    yield Step(
        f"{variant} bench",
        ("bench", str(bundle), *shape, "--peers", "eager,compile"),
        made=result,
    )
    yield Step(f"{variant} report", ("report", str(result)))


def take(step: Step) -> Outcome:
    """Run a step to its end."""
    command = [sys.executable, "-m", "dinov2rt", *step.arguments]
    started = time.perf_counter()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)  # noqa: S603
    return Outcome(
        name=step.name,
        command=" ".join(["dinov2rt", *step.arguments]),
        status=done.returncode,
        seconds=round(time.perf_counter() - started, 1),
        said=(done.stderr.strip().splitlines() or [""])[-1],
        document=_document(done.stdout),
    )


def run(out: Path, names: list[str], weights: str, grid: tuple[str, str]) -> bool:
    """Take every step that is not done yet; true when all of them passed."""
    file = out / "steps.json"
    outcomes: dict[str, Any] = _document(file.read_text()) if file.exists() else {}
    out.mkdir(parents=True, exist_ok=True)
    for variant in names:
        for step in steps(out, variant, weights, grid):
            if _is_done(step, outcomes):
                continue
            outcome = take(step)
            outcomes[step.name] = asdict(outcome)
            file.write_text(json.dumps(outcomes, indent=1), encoding="utf-8")
            print(
                f"{outcome.status:>4} {outcome.seconds:8.1f} s  {step.name}: {outcome.said}",
                flush=True,
            )
    return all(outcome["status"] == _PASSED for outcome in outcomes.values())


def _is_done(step: Step, outcomes: dict[str, Any]) -> bool:
    if step.made is not None:
        return step.made.exists()
    return step.name in outcomes and outcomes[step.name]["status"] == _PASSED


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a step that failed before it had anything to say
        return None


def main() -> int:
    """Print a line a step; the exit status is 0 when all passed, else 1."""
    parser = argparse.ArgumentParser(
        prog="gpu_run", description="prove and measure every variant on the GPU of this machine"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of bundles and results")
    parser.add_argument(
        "--variants", default=",".join(variant.name for variant in variants()), metavar="V,..."
    )
    parser.add_argument("--weights", default="synthetic:0", help="as for export")
    parser.add_argument("--batch", default="1,8,32,128", help="images a call")
    parser.add_argument("--size", default="224,518", help="sides")
    given = parser.parse_args()
    grid = (given.batch, given.size)
    return 0 if run(given.out, given.variants.split(","), given.weights, grid) else 1


if __name__ == "__main__":
    raise SystemExit(main())
