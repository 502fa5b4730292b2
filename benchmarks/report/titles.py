"""The titles of reports."""

from dinov2rt.benchmarks.results import BenchmarkRun


def title(run: BenchmarkRun) -> str:
    """Variants, chip and day: "dinov2_vits14 on AMD EPYC, 2026-11-27"."""
    variants = ", ".join(dict.fromkeys(facts.variant for facts in run.candidates))
    return f"{variants} on {measured_chip(run)}, {run.created[:10]}"


def measured_chip(run: BenchmarkRun) -> str:
    """The GPU or CPU that `run` measured: a machine with a GPU has runs of both."""
    machine = run.environment
    return (run.settings.device == "cuda" and machine.gpu) or machine.cpu
