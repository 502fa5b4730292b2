"""The arguments of `benchmarks.gpu.run`."""

import argparse
import re
from pathlib import Path

from dinov2rt.benchmarks.gpu.steps import Asked
from dinov2rt.bundle.variants import variants
from dinov2rt.runtime.tensorrt.flavour import installed_flavours


def asked_of(given: argparse.Namespace) -> Asked:
    """The request on the command line."""
    return Asked(
        weights=given.weights,
        batches=given.batch,
        sizes=given.size,
        bench_options=_bench_options(given),
        step_timeout_s=given.step_timeout,
        budget_s=given.budget,
        thorough=given.thorough,
        all_peers=given.all_peers,
        has_tensorrt=bool(installed_flavours()),
    )


def _bench_options(given: argparse.Namespace) -> tuple[str, ...]:
    options = ["--peers", given.peers]
    if given.seconds is not None:
        options += ["--seconds", f"{given.seconds:g}"]
    if given.turns is not None:
        options += ["--turns", f"{given.turns}"]
    return tuple(options)


def parser() -> argparse.ArgumentParser:
    """The parser of `python -m dinov2rt.benchmarks.gpu.run`."""
    made = argparse.ArgumentParser(
        prog="gpu_run", description="verify and measure every variant on this machine's GPU"
    )
    made.add_argument("out", metavar="OUT", type=Path, help="folder of bundles and results")
    made.add_argument(
        "--variants",
        default=",".join(variant.name for variant in variants()),
        metavar="V,...",
        help="variants, in this order (default: all, small to giant)",
    )
    made.add_argument("--weights", default="synthetic:0", help="as for export")
    made.add_argument(
        "--budget", type=float, default=600.0, metavar="S", help="seconds in all (default: 600)"
    )
    made.add_argument(
        "--all-peers",
        action="store_true",
        help="include the forms of PyTorch that compile for minutes",
    )
    made.add_argument(
        "--thorough",
        action="store_true",
        help="measure with `bench`, with a process for each candidate and no time limit; the "
        "options below apply only to it",
    )
    made.add_argument("--batch", type=_list, default="1,8,32,128", help="images per call")
    made.add_argument("--size", type=_list, default="224,518", help="sides or HxW, in pixels")
    made.add_argument("--peers", default="eager,compile", metavar="P,...", help="as for bench")
    made.add_argument("--seconds", type=float, help="as for bench")
    made.add_argument("--turns", type=int, help="as for bench")
    made.add_argument(
        "--step-timeout",
        type=float,
        metavar="S",
        help="seconds after which a step is ended and counts as failed (default: none)",
    )
    return made


def _list(text: str) -> str:
    """Check that `text` is a list of numbers or sizes, and return it."""
    if re.fullmatch(r"(\d{1,5}(x\d{1,5})?,)*\d{1,5}(x\d{1,5})?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed are numbers as in 1,8 or 224,518x266")
    return text
