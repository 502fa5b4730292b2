"""Assigns one colour and one marker to each candidate, the same on every page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from matplotlib.axes import Axes

from dinov2rt.benchmarks.report.figures.svg import GROUND, PALETTE, draw
from dinov2rt.benchmarks.results import BenchmarkRun

PLACES = (
    # The first eight differ in colour; they are what most pages show.
    "dinov2rt-openvino-fp32",
    "dinov2rt-openvino-int8",
    "eager",
    "compile",
    "openvino",
    "transformers",
    "dinov2rt-onnxruntime-fp32",
    "onnxruntime",
    "dinov2rt-onnxruntime-fp16",
    "eager-half",
    "dinov2rt-openvino-bf16",
    "compile-max-autotune",
    "compile-half",
    "eager-autocast",
    "dinov2rt-tensorrt-fp16",
    "compile-autocast",
    "dinov2rt-onnxruntime-int8",
    "compile-max-autotune-autocast",
    "compile-reduce-overhead-half",
    "dinov2rt-openvino-fp16",
    "dinov2rt-onnxruntime-bf16",
    "dinov2rt-tensorrt-fp32",
    "dinov2rt-tensorrt-bf16",
    "dinov2rt-tensorrt-int8",
    "compile-reduce-overhead-autocast",
    "compile-max-autotune-half",
    "openvino-bf16",
    "eager-bf16",
    "compile-bf16",
    "transformers-bf16",
    "compile-max-autotune-bf16",
)
"""The place of each known candidate. Append only: committed pages depend on the order."""

_MARKERS = "os^Dv<>Ph"  # nine, so that with eight colours no pair returns before the 73rd place


@dataclass(frozen=True, slots=True)
class Marks:
    """The look of the candidates of a run.

    A known candidate looks the same on every page. Others take the places after the known ones.
    """

    candidates: tuple[str, ...]
    own: frozenset[str]

    @classmethod
    def of(cls, run: BenchmarkRun) -> Self:
        """dinov2rt's own candidates come first, then the peers, each in the order of the run."""
        facts = sorted(run.candidates, key=lambda facts: facts.is_peer)
        return cls(
            tuple(dict.fromkeys(each.candidate for each in facts)),
            frozenset(each.candidate for each in facts if not each.is_peer),
        )

    def place(self, candidate: str) -> int:
        """The number that decides colour and marker."""
        if candidate in PLACES:
            return PLACES.index(candidate)
        others = [name for name in self.candidates if name not in PLACES]
        return len(PLACES) + others.index(candidate)

    def color(self, candidate: str) -> str:
        """The colour on a light page."""
        return PALETTE[self.place(candidate) % len(PALETTE)][0]

    def line(self, axes: Axes, candidate: str, points: Sequence[tuple[float, float]]) -> None:
        """Draw a line with a mark at each point."""
        axes.plot(*zip(*points, strict=True), **self._look(candidate))

    def dots(self, axes: Axes, candidate: str, points: Sequence[tuple[float, float]]) -> None:
        """Draw marks without a line."""
        axes.plot(*zip(*points, strict=True), **self._look(candidate), linestyle="none")

    def bar(self, axes: Axes, candidate: str, y: float, width: float, group: int) -> None:
        """A horizontal bar from 0; `group` tells bars of one candidate apart."""
        gid = f"candidate-{self.place(candidate)}-{group}"
        axes.barh(y, width, height=0.75, color=self.color(candidate), gid=gid)

    def _look(self, candidate: str) -> dict[str, Any]:
        place = self.place(candidate)
        return {
            "color": self.color(candidate),
            "marker": _MARKERS[place % len(_MARKERS)],
            "markersize": 7,
            "markeredgecolor": GROUND,
            "markeredgewidth": 0.8,
            "linewidth": 2.4 if candidate in self.own else 1.3,
            "zorder": 3 - self.candidates.index(candidate) / 100,  # dinov2rt's own on top
            "gid": f"candidate-{place}",
        }

    def key(self, candidate: str) -> str:
        """The candidate's line and mark, as a small figure for a legend."""

        def paint(axes: Axes) -> None:
            axes.plot([0, 1, 2], [0, 0, 0], **self._look(candidate), markevery=[1])
            axes.set_axis_off()

        name = f"key-{self.place(candidate)}"
        return draw(paint, name, title=candidate, size_in=(0.4, 0.2))
