"""Checks whether this machine can run a plan, before TensorRT reads any of the plan's bytes."""

from collections.abc import Iterator
from dataclasses import dataclass

from dinov2rt.bundle.entries import Flavour, PlanEntry
from dinov2rt.errors import BackendError
from dinov2rt.optional import is_older, version_numbers
from dinov2rt.runtime.gpu.cuda import Gpu, find_gpu, needed_cuda
from dinov2rt.runtime.tensorrt.flavour import cannot_run_on, import_tensorrt, installed_flavours

_OPEN = "open"
_AMPERE = 80


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts of this machine that decide whether a plan can run.

    `flavours` are the installed flavours of TensorRT. `version` is the installed version of the
    plan's flavour, or None. `needed_cuda` is the lowest CUDA version that the driver must support.
    """

    gpu: Gpu
    flavours: tuple[Flavour, ...]
    version: str | None
    needed_cuda: tuple[int, int]

    @classmethod
    def examine(cls, flavour: Flavour) -> "Machine":
        """This machine, for plans of `flavour`.

        Raises:
            BackendError: there is no GPU, or no driver.
            MissingDependencyError: a package is missing.
        """
        flavours = installed_flavours()
        version = import_tensorrt(flavour).__version__ if flavour in flavours else None
        return cls(find_gpu(), flavours, version, needed_cuda())


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A property of a plan that this machine does not have."""

    field: str
    of_plan: str
    here: str
    remedy: str

    def __str__(self) -> str:
        return f"its {self.field} is {self.of_plan}, this machine's is {self.here}; {self.remedy}"


def mismatches(plan: PlanEntry, machine: Machine, rebuild: str) -> Iterator[Mismatch]:
    """Why `plan` cannot run on `machine`, the most informative reason first.

    By default, a plan runs only with the exact TensorRT version that built it, on the compute
    capability that it was built for.
    """
    if machine.version is None:
        installed = " and ".join(machine.flavours) or "none"
        yield Mismatch("TensorRT flavour", plan.flavour, installed, rebuild)
    elif not _takes_version(plan, machine.version):
        yield Mismatch("TensorRT version", plan.version, machine.version, rebuild)
    if not _takes_target(plan, machine.gpu.target):
        here = f"{machine.gpu.target} ({machine.gpu.name})"
        yield Mismatch("compute capability", plan.target, here, rebuild)
    if machine.gpu.cuda < machine.needed_cuda:
        needed, here = (".".join(map(str, v)) for v in (machine.needed_cuda, machine.gpu.cuda))
        remedy = "update the driver; a rebuilt plan would need the same"
        yield Mismatch(
            "driver", f"one for CUDA {needed}", f"{machine.gpu.driver} for CUDA {here}", remedy
        )


def _takes_version(plan: PlanEntry, version: str) -> bool:
    if plan.options.get("version_compatible"):
        built = version_numbers(plan.version)[:3]
        return built[:1] == version_numbers(version)[:1] and not is_older(version, built)
    return plan.version == version


def _takes_target(plan: PlanEntry, target: str) -> bool:
    if plan.options.get("hardware_compatible") == "ampere-plus":
        return int(target.removeprefix("sm")) >= _AMPERE
    return plan.target in (_OPEN, target)


def check_runs(plan: PlanEntry, machine: Machine, rebuild: str) -> None:
    """Check that `plan` can run on `machine`.

    Raises:
        BackendError: it cannot; the message names the field, both values and the way out.
    """
    reason = cannot_run_on(plan.flavour, machine.gpu.name, machine.gpu.target)
    if reason is not None:  # a rebuilt plan would not run either
        raise BackendError(f"{plan.file.path}: {reason}")
    for mismatch in mismatches(plan, machine, rebuild):
        raise BackendError(f"{plan.file.path}: {mismatch}")
