"""The processor that this process runs on."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

# Instruction sets of matrix products, by their flags in /proc/cpuinfo. The last one that a CPU has
# is part of the name of a benchmark's machine, so keep the order.
_INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_bf16": "AMX-BF16",
    "amx_tile": "AMX",
}
_MULTIPLIES_BYTES = ("AVX-VNNI", "AVX-512 VNNI")
_MULTIPLIES_BF16 = ("AVX-512 BF16", "AMX-BF16")
_X86 = ("x86_64", "amd64")


@dataclass(frozen=True, slots=True)
class Cpu:
    """`cores` are those that this process may use.

    `instruction_sets_known` is false where the system does not say; then none are listed.
    """

    model: str
    instruction_sets: tuple[str, ...]
    cores: int
    instruction_sets_known: bool = True

    @property
    def multiplies_bytes(self) -> bool:
        """Whether it has instructions that make int8 faster than float32."""
        return any(name in self.instruction_sets for name in _MULTIPLIES_BYTES)

    @property
    def multiplies_bf16(self) -> bool:
        """Whether it has instructions that make bfloat16 faster than float32."""
        return any(name in self.instruction_sets for name in _MULTIPLIES_BF16)

    @property
    def multiplies_bf16_tiles(self) -> bool:
        """Whether it has AMX for bfloat16, several times faster than AVX-512."""
        return "AMX-BF16" in self.instruction_sets


def this_cpu() -> Cpu:
    """This machine's CPU; without /proc/cpuinfo, its instruction sets are unknown."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model, instruction_sets = parse_cpuinfo(text)
    return Cpu(
        model or platform.processor() or platform.machine(),
        instruction_sets or (),
        usable_cores(),
        instruction_sets_known=instruction_sets is not None,
    )


def parse_cpuinfo(text: str) -> tuple[str | None, tuple[str, ...] | None]:
    """The CPU's model and its relevant instruction sets, from the text of /proc/cpuinfo.

    Each is None if the text does not contain it; a CPU without these sets gives an empty tuple.
    """
    first_core = dict(_key_and_value(line) for line in text.partition("\n\n")[0].splitlines())
    flags = first_core.get("flags", "").split()
    names = tuple(name for flag, name in _INSTRUCTION_SETS.items() if flag in flags)
    return first_core.get("model name"), names if flags else None


def is_x86() -> bool:
    """Whether this is a 64-bit x86 CPU."""
    return platform.machine().lower() in _X86


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _key_and_value(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()
