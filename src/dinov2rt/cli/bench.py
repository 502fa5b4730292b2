"""`dinov2rt bench`: how fast, how accurate, and what else could run the same model here."""

import math
import shlex
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.remote import local_bundle
from dinov2rt.cli.arguments import require_export_room
from dinov2rt.cli.output import progress
from dinov2rt.cli.verb import Outcome, Verb, status_of
from dinov2rt.cli.verify import parse_sizes
from dinov2rt.errors import BackendError, InputError, MissingDependencyError
from dinov2rt.named_enum import unknown_name
from dinov2rt.optional import require
from dinov2rt.runtime.backends.modes import DEVICES
from dinov2rt.runtime.cpu import this_cpu, usable_cores
from dinov2rt.runtime.gpu.cuda import find_gpu

if TYPE_CHECKING:
    from dinov2rt.benchmarks.harness.measure import Request
    from dinov2rt.benchmarks.results import BenchmarkRun

_PEERS = "eager,compile,transformers,openvino,onnxruntime"


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "bundles", metavar="BUNDLE", nargs="+", type=local_bundle, help="what to measure"
    )
    parser.add_argument(
        "--batch", default="1,8", metavar="N,...", help="images a call (default: 1,8)"
    )
    parser.add_argument(
        "--size", default="224", metavar="S,...", help="sides, N or HxW (default: 224)"
    )
    parser.add_argument(
        "--peers", default=_PEERS, metavar="P,...", help=f"or none (default: {_PEERS})"
    )
    parser.add_argument("--backend", help="measure this backend alone, not each that runs here")
    parser.add_argument("--precision", help="measure this precision alone, not each in the bundle")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="for each candidate and shape (default: 5)"
    )
    parser.add_argument("--turns", default="6", help="of each candidate, at least (default: 6)")
    parser.add_argument(
        "--processes",
        default="1",
        metavar="N",
        help="of each candidate and shape, one after the other; they share the turns (default: 1)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="keep the result")
    parser.add_argument(
        "--against", type=Path, metavar="OLD.json", help="compare with an earlier result"
    )


def _run(arguments: Namespace) -> Outcome:
    require_export_room("bench", extra="bench")
    for package in ("msgspec", "psutil", "PIL"):
        require(package, extra="bench", purpose="bench")
    from dinov2rt.benchmarks.results import BenchmarkRun

    earlier = None if arguments.against is None else BenchmarkRun.read(arguments.against)
    return _outcome(_measure(arguments, earlier), earlier)


def _measure(arguments: Namespace, earlier: "BenchmarkRun | None") -> "BenchmarkRun":
    """The whole run. Finished parts are kept beside --out in case the rest fails."""
    from dinov2rt.benchmarks.harness.bench import bench
    from dinov2rt.benchmarks.report.comparison import refuse_unlike

    out: Path | None = arguments.out
    so_far = None if out is None else out.with_name(f"{out.name}.partial")
    command = shlex.join(["dinov2rt", *sys.argv[1:]])
    request = _request(arguments)
    if earlier is not None:
        request = replace(request, matrix_library=earlier.peak_rates.matrix_library)
    for run in bench(arguments.bundles, request, command=command, say=progress):
        if earlier is not None and not run.rows:  # first of all before anything is measured
            refuse_unlike(earlier, run)
        if so_far is not None:
            run.write(so_far)
    if out is not None and so_far is not None:
        so_far.replace(out)
    return run


def _request(arguments: Namespace) -> "Request":
    from dinov2rt.benchmarks.harness.measure import Request
    from dinov2rt.benchmarks.peers.candidates import find, own, peers

    device = _device(arguments.device)
    if not 0 < arguments.seconds < math.inf:
        raise InputError(f"--seconds {arguments.seconds}; allowed are seconds above 0")
    (reference,) = find(["eager"])
    names = [] if arguments.peers == "none" else arguments.peers.split(",")
    return Request(
        own=own(arguments.backend, arguments.precision),
        peers=tuple(dict.fromkeys(peers(names, device, in_bf16=_in_bf16(arguments.precision)))),
        reference=reference,
        batches=tuple(dict.fromkeys(parse_counts("batch", arguments.batch))),
        sizes=tuple(dict.fromkeys(parse_sizes(arguments.size))),
        device=device,
        threads=_threads(arguments.threads),
        seconds=arguments.seconds,
        min_turns=_count("turns", arguments.turns),
        processes=_count("processes", arguments.processes),
    )


def _in_bf16(precision: str | None) -> bool:
    """Whether dinov2rt is measured in bf16 on a CPU, and so are the peers."""
    return precision in (None, Precision.BF16) and this_cpu().multiplies_bf16


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, from "1,8,32".

    Raises:
        InputError: anything else.
    """
    counts = tuple(int(count) for count in text.split(",") if count.isascii() and count.isdigit())
    if len(counts) < len(text.split(",")) or min(counts) < 1:
        raise InputError(f"--{option} {text!r}; allowed are whole numbers from 1, as in 1,8,32")
    return counts


def _count(option: str, text: str) -> int:
    counts = parse_counts(option, text)
    if len(counts) > 1:
        raise InputError(f"--{option} {text!r}; allowed is one whole number from 1")
    return counts[0]


def _device(name: str) -> str:
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    if name != "auto":
        return name
    try:
        find_gpu()
    except (BackendError, MissingDependencyError):
        return "cpu"
    return "cuda"


def _threads(asked: int | None) -> int:
    if asked is None:
        return usable_cores()
    if asked < 1:
        raise InputError(f"--threads {asked}; allowed is a whole number from 1")
    return asked


def _outcome(run: "BenchmarkRun", earlier: "BenchmarkRun | None") -> Outcome:
    from dinov2rt.benchmarks.report.comparison import compare_runs

    document: dict[str, Any] = {"run": run}
    lines = [_text(run)]
    passed: object = _has_passed(run)
    if earlier is not None:
        comparison = compare_runs(earlier, run)
        document["comparison"] = comparison
        lines.append(str(comparison))
        passed = passed and bool(comparison)
    return Outcome(document, "\n\n".join(lines), status_of(passed))


def _has_passed(run: "BenchmarkRun") -> bool:
    """Whether dinov2rt was timed with every bundle, and nothing of it failed."""
    own = [row for row in run.rows if not run.facts(row).is_peer]
    variants = {row.cell.variant for row in own}
    return (
        all(row.failure is None for row in own)
        and not any(missing.failed for missing in run.missing)
        and all(bundle.variant in variants for bundle in run.bundles)
    )


def _text(run: "BenchmarkRun") -> str:
    from dinov2rt.benchmarks.report.precision_table import precision_table
    from dinov2rt.benchmarks.report.ratios import cells
    from dinov2rt.benchmarks.report.summary import sentences
    from dinov2rt.benchmarks.report.tables import latency_table, missing_table

    latencies = [latency_table(run, cell) for cell in cells(run)]
    tables = [*latencies, precision_table(run), missing_table(run)]
    blocks = [f"{table.title}\n\n{table}" for table in tables if table is not None]
    warnings = [f"warning: {warning}" for warning in run.environment.warnings]
    return "\n\n".join([*warnings, *blocks, *sentences(run)])


BENCH = Verb("bench", "measure latency, throughput and accuracy beside peers", _add_arguments, _run)
