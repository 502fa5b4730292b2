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
    """The class maps among the outputs of a graph that are made on the host, by `threads`."""

    names: frozenset[str]
    threads: int

    @classmethod
    def of(cls, outputs: Sequence[str], threads: int) -> "ClassMaps":
        """The class maps among `outputs` whose scores are outputs as well."""
        maps = (name for name in outputs if is_class_map(name) and scores_name(name) in outputs)
        return cls(frozenset(maps), threads)

    def sources(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """The outputs that the graph has to return for `outputs`: scores in place of class maps."""
        named = (scores_name(name) if name in self.names else name for name in outputs)
        return tuple(dict.fromkeys(named))

    def completed(
        self, values: Mapping[str, Any], outputs: Sequence[str], inputs: Mapping[str, Any]
    ) -> dict[str, NDArray[Any]]:
        """The `outputs` of a call with `inputs`, whose `sources` are in `values`."""
        maps = {
            name: self._made(values[scores_name(name)], _size(inputs))
            for name in outputs
            if name in self.names
        }
        return {name: maps[name] if name in maps else values[name] for name in outputs}

    def _made(self, scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
        return np.stack([best_classes(image, size, self.threads) for image in scores])


def without_class_maps(model: Any, threads: int) -> ClassMaps:
    """Remove class maps from the outputs of an OpenVINO model, and with them what computes them."""
    results = {result.output(0).get_any_name(): result for result in model.get_results()}
    maps = ClassMaps.of(tuple(results), threads)
    for name in maps.names:
        model.remove_result(results[name])
    return maps


def _size(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the images: class maps are of their own size."""
    if InputFormat.PIXELS in inputs:
        _, height, width, _ = np.shape(inputs[InputFormat.PIXELS])
    else:
        _, _, height, width = np.shape(inputs[InputFormat.IMAGES])
    return height, width
