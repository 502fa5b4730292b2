"""The time of a call on a GPU, in phases."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phases:
    """The GPU time of one call in three phases, in ms by CUDA events.

    The copies are the images' copy to the GPU and the outputs' copy to the host. Work of the host
    before, between and after them is not included.
    """

    host_to_device_ms: float
    compute_ms: float
    device_to_host_ms: float
