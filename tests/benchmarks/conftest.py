"""A benchmark run with invented figures, for pages and comparisons."""

from support.benchmark_runs import benchmark_run, timed, with_precisions

__all__ = ["benchmark_run", "timed", "with_precisions"]
