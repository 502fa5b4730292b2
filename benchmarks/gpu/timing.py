"""Times calls on a GPU: many calls between CUDA events, and single calls by the host's clock."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from dinov2rt.benchmarks.gpu.contestants import Contestant
from dinov2rt.benchmarks.harness.accuracy_check import check, limits_for
from dinov2rt.benchmarks.harness.flops import roofline
from dinov2rt.benchmarks.results import Cell, PeakRates, Row
from dinov2rt.benchmarks.statistics import summarise
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.errors import first_line

TURNS = 5
_TURN_S = 0.08
_HOST_CALLS = 10
_COPY_BYTES = 2**31


def measure(
    cell: Cell, manifest: Manifest, contestants: Sequence[Contestant], peak_rates: PeakRates
) -> Iterator[Row]:
    """A row for each contestant: checks accuracy first, then measures times in turns.

    A contestant that fails before its times are taken, e.g. for want of memory, has the reason in
    its row, and the others go on.
    """
    reference = next(each for each in contestants if each.is_reference)
    want = reference.outputs()
    limits = limits_for(manifest, Precision.FP16)
    rows, calls, timed = {}, {}, []
    for each in contestants:
        if each.is_reference:
            continue
        try:
            rows[each.name] = Row(cell, each.name, accuracy=check(each.outputs(), want, limits))
            calls[each.name] = _calls_a_turn(each.enqueue)
            timed.append(each)
        except Exception as error:  # a peer may raise anything
            yield Row(cell, each.name, failure=first_line(error))
    device_ms: dict[str, list[float]] = {each.name: [] for each in timed}
    host_ms: dict[str, list[list[float]]] = {each.name: [] for each in timed}
    for _ in range(TURNS):
        for each in timed:
            device_ms[each.name].append(device_time_ms(each.enqueue, calls[each.name]))
            host_ms[each.name].append([host_time_ms(each.call) for _ in range(_HOST_CALLS)])
    for each in timed:
        samples = [sample for turn in host_ms[each.name] for sample in turn]
        turns = [median(turn) for turn in host_ms[each.name]]
        latency = summarise(samples, turns, cell.batch)
        compute_ms = median(device_ms[each.name])
        phases = each.phases()
        assert phases is not None  # noqa: S101 (all of them run on a GPU)
        rates = [peak_rates.matrix_gflops["fp16"]] * TURNS
        yield replace(
            rows[each.name],
            latency=replace(
                latency,
                compute_ms=compute_ms,
                host_to_device_ms=phases.host_to_device_ms,
                device_to_host_ms=phases.device_to_host_ms,
            ),
            roofline=roofline(
                manifest.architecture,
                cell,
                Precision.FP16,
                turns_ms=device_ms[each.name],
                matrix_gflops=rates,
                copy_gb_per_s=peak_rates.copy_gb_per_s or 1.0,
            ),
        )


def device_time_ms(enqueue: Callable[[], object], calls: int) -> float:
    """Mean GPU time of a call, over `calls` calls that are enqueued back to back."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    before.record()
    for _ in range(calls):
        enqueue()
    after.record()
    torch.cuda.synchronize()
    return float(before.elapsed_time(after)) / calls


def host_time_ms(call: Callable[[], object]) -> float:
    """Host time of one call, from images in host memory to outputs in host memory."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def _calls_a_turn(enqueue: Callable[[], object]) -> int:
    """The number of calls that fill a turn; compiles and captures everything first."""
    for _ in range(3):
        enqueue()
    one_ms = device_time_ms(enqueue, 3)
    return int(np.clip(1e3 * _TURN_S / one_ms, 3, 50))


def matrix_gflops(side: int) -> float:
    """The rate of a float16 matrix product of two random square matrices."""
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.float16) for _ in range(2))
    torch.mm(left, right)
    times = [device_time_ms(lambda: torch.mm(left, right), 5) for _ in range(5)]
    return 2 * side**3 / (median(times) * 1e6)


def copy_gb_per_s() -> float:
    """Bytes read plus bytes written per second by a large copy within GPU memory."""
    source = torch.randint(0, 255, (_COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    times = [device_time_ms(lambda: target.copy_(source), 3) for _ in range(3)]
    return 2 * _COPY_BYTES / (median(times) * 1e6)
