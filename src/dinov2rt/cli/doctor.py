"""`dinov2rt doctor`: what this machine can run, and what is missing for more."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from dinov2rt.cli.arguments import add_bundle
from dinov2rt.cli.output import table
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.runtime.cpu import Cpu
from dinov2rt.runtime.doctor import Diagnosis, ListedGpu, ModeStatus, Package, examine
from dinov2rt.runtime.model import load


def _add_arguments(parser: ArgumentParser) -> None:
    add_bundle(parser, optional=True)


def _run(arguments: Namespace) -> Outcome:
    found = examine()
    text, bundle = _text(found), None
    if arguments.bundle is not None and found:
        bundle = {"path": arguments.bundle, "runs_as": _runs_as(arguments.bundle)}
        text += f"\n\n{arguments.bundle}: {bundle['runs_as']}"
    document = {"can_run": bool(found), "machine": found, "bundle": bundle}
    return Outcome(document, text, status_of(found))


def _runs_as(bundle: Path) -> str:
    with load(bundle) as model:
        return model.describe()


def _text(found: Diagnosis) -> str:
    memory = "unknown" if found.memory_mib is None else f"{found.memory_mib / 1024:.1f} GiB usable"
    machine = [
        ("Python", f"{found.python}, numpy {found.numpy}"),
        ("system", found.system),
        ("CPU", _cpu(found.cpu)),
        ("memory", memory),
        ("GPU", "; ".join(map(_gpu, found.gpus)) or "no NVIDIA GPU found"),
        ("driver", found.nvidia_driver or "no NVIDIA driver found"),
        ("providers", ", ".join(found.onnxruntime_providers) or "none, without onnxruntime"),
    ]
    packages = table(("package", "version", "for", "add it with"), _rows(found.packages))
    return "\n".join([table(("", ""), machine).lstrip(), "", packages, "", *_verdict(found)])


def _cpu(cpu: Cpu) -> str:
    none = "no AVX2, AVX-512, VNNI or AMX"
    unknown = "instruction sets not known"
    sets = ", ".join(cpu.instruction_sets) or (none if cpu.instruction_sets_known else unknown)
    return f"{cpu.model}; {sets}; {cpu.cores} cores usable"


def _gpu(gpu: ListedGpu) -> str:
    return f"{gpu.name}, {gpu.memory_mib} MiB, compute capability {gpu.compute_capability}"


def _rows(packages: tuple[Package, ...]) -> list[tuple[str, str, str, str]]:
    return [
        (
            package.name,
            package.version or "missing",
            package.purpose,
            "" if package.version else package.install,
        )
        for package in packages
    ]


def _verdict(found: Diagnosis) -> list[str]:
    return [_sentence(mode) for mode in found.runners]


def _sentence(mode: ModeStatus) -> str:
    if mode.cannot_run is None:
        return f"{mode.name}: runs"
    return f"{mode.name}: does not run, {mode.cannot_run}"


DOCTOR = Verb("doctor", "show what this machine can run, and what is missing", _add_arguments, _run)
