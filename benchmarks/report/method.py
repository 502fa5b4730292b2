"""How a run was measured and what its figures mean, in sentences for the report."""

from dinov2rt.benchmarks.results import Settings
from dinov2rt.benchmarks.statistics import LOADS

WORDS = (
    ("setting, or cell", "one model, one number of images per call and one image size"),
    ("candidate", "one way to run the model; dinov2rt has one for each backend and precision"),
    ("peer", "a candidate that is not dinov2rt: the software that people would use otherwise"),
    (
        "precision",
        "the number format of the arithmetic. float32 is the reference; float16, bfloat16 and int8 "
        "are faster and less exact",
    ),
    (
        "median, p90, p99",
        "half of all calls are faster than the median, 90 or 99 of 100 are faster than p90 or p99",
    ),
    (
        "interval (95 %)",
        "the range that holds the true median in 95 of 100 cases; where the intervals of two "
        "candidates overlap, the measurement does not tell which is faster",
    ),
    (
        "relative L2, cosine",
        "two measures of the error against eager PyTorch in float32: the size of the difference "
        "over the size of the output, and the angle between both, where 1 is exact",
    ),
    (
        "the roofline",
        "the least time that the arithmetic and the memory traffic can take on this machine",
    ),
)
"""The terms of a report, each with its meaning in plain words."""


def method(settings: Settings) -> str:
    """How the run was measured, in a sentence."""
    where = f"Measured on {settings.device} with {settings.threads} threads, on {settings.images}: "
    if settings.one_process:
        return (
            f"{where}all candidates of a cell take turns, {settings.min_turns} each, "
            "in one process that holds them all."
        )
    taking_turns = (
        f"{where}all candidates of a cell take turns in changing order, at least "
        f"{settings.min_turns} each, until one of them has had "
        f"{settings.seconds_per_candidate:g} seconds in its turns."
    )
    if settings.processes == 1:
        return taking_turns
    return f"{taking_turns} Each has {settings.processes} processes, one after the other."


def reading(settings: Settings) -> tuple[str, ...]:
    """Explains the columns of the tables."""
    product, share = "which takes turns with the candidates", "of it is the median over turns"
    inaccurate = "a candidate that fails it gets no time"
    if settings.one_process:
        product = "measured before the first cell"
        share = "of it is the median over turns, of the time on the GPU"
        inaccurate = "a candidate that fails it is timed all the same, and marked"
    return (
        "A call goes from images in host memory to outputs in host memory; the median is over "
        "single calls.",
        "The interval of a median holds the true one in 95 of 100 cases, by order statistics of "
        "the turns.",
        "The ratio to the fastest peer compares turns that ran side by side, and is to the fastest "
        "peer of the same precision; below 1 is faster than it.",
        "The roofline is the least time for the cell's arithmetic at the rate of a large matrix "
        f"product, {product}, or for its bytes at the copy bandwidth, whichever is longer; the "
        f"share {share}.",
        "Accuracy is measured for the very candidate at the cell, against eager float32 on the "
        f"same images; {inaccurate}.",
    )


def cold_start_reading(settings: Settings) -> tuple[str, ...]:
    """Explains the figures of loading and memory."""
    if settings.one_process:
        return (
            "Loading dinov2rt is its first load, without the import of its libraries; loading a "
            "peer is compiling it for its first cell and the first three calls.",
            "Memory is not measured: one process holds all candidates.",
        )
    return (
        f"dinov2rt is loaded {LOADS} times, each in a process of its own, and the median counts; a "
        "peer is loaded once, its files perhaps not yet in the page cache.",
        "What a candidate compiles for a shape is in its first call; the plain ONNX export and the "
        "conversion to OpenVINO are loaded there as well.",
        "Memory is the most that was resident over all cells, mapped files included.",
    )
