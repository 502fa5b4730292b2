"""Class maps made from scores on the host, in place of a graph's own, on CPUs.

A graph resamples the scores of all classes and searches each pixel's best. On a CPU that takes more
time than the head itself; `bundle/tasks/class_map.py` leaves out classes that cannot be the best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.signature import InputFormat, is_class_map, scores_name
from dinov2rt.bundle.tasks.class_map import best_classes


@dataclass(frozen=True, slots=True)
class ClassMaps:
    """The class maps among the outputs of a graph that are made on the host."""

    names: frozenset[str]

    @classmethod
    def of(cls, outputs: Sequence[str]) -> "ClassMaps":
        """Those among `outputs` whose scores are outputs as well."""
        return cls(
            frozenset(
                name for name in outputs if is_class_map(name) and scores_name(name) in outputs
            )
        )

    def sources(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """What the graph has to return for `outputs`: scores in place of class maps."""
        named = (scores_name(name) if name in self.names else name for name in outputs)
        return tuple(dict.fromkeys(named))

    def completed(
        self, values: Mapping[str, Any], outputs: Sequence[str], inputs: Mapping[str, Any]
    ) -> dict[str, NDArray[Any]]:
        """The `outputs` of a call with `inputs`, whose `sources` are in `values`."""
        return {
            name: _maps(values[scores_name(name)], inputs) if name in self.names else values[name]
            for name in outputs
        }


def _maps(scores: NDArray[np.float32], inputs: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.stack([best_classes(image, _size(inputs)) for image in scores])


def _size(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the images: class maps are of their own size."""
    if InputFormat.PIXELS in inputs:
        _, height, width, _ = np.shape(inputs[InputFormat.PIXELS])
    else:
        _, _, height, width = np.shape(inputs[InputFormat.IMAGES])
    return height, width
