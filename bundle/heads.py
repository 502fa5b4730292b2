"""The official task heads, and a bundle's entries for its own heads.

Sources: `dinov2/hub/classifiers.py`, `dinov2/hub/depthers.py`, and the configuration files of the
segmentation heads.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.variants import name_of
from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted

_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,59}")


class Task(StrEnum):
    """The task of a head; the value is the name of its output if no other head has this task."""

    CLASSIFICATION = "logits"
    DEPTH = "depth"
    SEGMENTATION = "segmentation"


class Decoder(StrEnum):
    """How a head turns tokens into a prediction."""

    CLASSIFIER = "classifier"
    """CLS tokens, and usually the mean patch token, multiplied by one matrix."""
    BINS = "bins"
    """Depth as the mean of 256 bins, weighted by a 1×1 convolution."""
    DPT = "dpt"
    """Depth by the decoder of the dense prediction transformer."""
    PIXELS = "pixels"
    """Classes by batch norm and a 1×1 convolution."""


_DEPTH_LAYERS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}
"""Layers by the backbone's depth; for 24 blocks they do not follow the pattern of the others."""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """One of the official heads.

    `num_layers` is the number of the backbone's layers that it reads, `data` its training data set.
    `depth_range` is in metres; `num_classes` is the number of classes of the head's output.
    """

    name: str
    task: Task
    decoder: Decoder
    data: str
    num_layers: int
    num_classes: int | None = None
    depth_range: tuple[float, float] | None = None

    @property
    def infix(self) -> str:
        """Its name in the names of the official files, e.g. `nyu_dpt`."""
        return self.name.replace("-", "_")

    @property
    def is_dense(self) -> bool:
        """Whether it answers for every pixel, so that images are padded and not cropped."""
        return self.task is not Task.CLASSIFICATION

    def layers_of(self, architecture: Architecture) -> tuple[int, ...]:
        """The blocks of `architecture` that it reads, ascending.

        Raises:
            InputError: no head was published for a backbone of that depth.
        """
        if self.task is Task.DEPTH and self.num_layers > 1:
            if architecture.depth not in _DEPTH_LAYERS:
                raise InputError(
                    f"head {self.name} reads four layers of 12, 24 or 40 blocks, "
                    f"{name_of(architecture)} has {architecture.depth}"
                )
            return _DEPTH_LAYERS[architecture.depth]
        return tuple(range(architecture.depth - self.num_layers, architecture.depth))

    def check(self, architecture: Architecture) -> None:
        """Check that the head was trained on features of `architecture`.

        Raises:
            InputError: `architecture` has registers, but the head was trained on features without.
        """
        if self.is_dense and architecture.num_registers:
            raise InputError(
                f"head {self.name} was trained on features of variants without registers, and "
                f"{name_of(architecture)} has {architecture.num_registers}; the shapes fit, "
                "but predictions would be wrong; "
                f"export {name_of(architecture).removesuffix('_reg')} with it"
            )


def _classifier(name: str, num_layers: int) -> HeadSpec:
    return HeadSpec(name, Task.CLASSIFICATION, Decoder.CLASSIFIER, "imagenet1k", num_layers, 1000)


def _depth(data: str, kind: str, farthest: float) -> HeadSpec:
    decoder = Decoder.DPT if kind == "dpt" else Decoder.BINS
    layers = 1 if kind == "linear" else 4
    return HeadSpec(
        f"{data}-{kind}", Task.DEPTH, decoder, data, layers, depth_range=(0.001, farthest)
    )


def _segmentation(data: str, kind: str, num_classes: int) -> HeadSpec:
    layers = 4 if kind == "ms" else 1
    return HeadSpec(f"{data}-{kind}", Task.SEGMENTATION, Decoder.PIXELS, data, layers, num_classes)


OFFICIAL_HEADS = {
    spec.name: spec
    for spec in (
        _classifier("linear", 1),
        _classifier("linear4", 4),
        *(
            _depth(data, kind, farthest)
            for data, farthest in (("nyu", 10.0), ("kitti", 80.0))
            for kind in ("linear", "linear4", "dpt")
        ),
        *(
            _segmentation(data, kind, num_classes)
            for data, num_classes in (("ade20k", 150), ("voc2012", 21))
            for kind in ("linear", "ms")
        ),
    )
}
"""The official heads by name. NYU's linear depth heads reach 10 m, see docs/heads.md."""


@dataclass(frozen=True, slots=True)
class HeadEntry:
    """A head of a bundle.

    `output` is the name of the graph's output: logits [B, K], depth [B, H, W] in metres, or classes
    uint8 [B, H, W]. `source` and `sha256` are as in `WeightsEntry`. `layers` are the blocks that
    the head reads. `class_names` are the names of a user's own classes; otherwise the classes of
    `data` apply; `palette` are their colours (red, green, blue), where they are classes of pixels.
    `uses_mean` says whether a classifier also reads the mean patch token, see
    `export/heads/eager.py`.

    Raises:
        ValueError: a name that no head has, or a range that no depth has.
    """

    name: str
    task: Task
    decoder: Decoder
    data: str
    output: str
    source: str
    sha256: str
    layers: tuple[int, ...]
    num_classes: int | None = None
    depth_range: tuple[float, float] | None = None
    class_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, ...], ...] = ()
    uses_mean: bool = True

    def __post_init__(self) -> None:
        for text in (self.name, self.data):  # parts of file names
            if not _PLAIN_NAME.fullmatch(text):
                raise ValueError(f"a head's name or data is {quoted(text)}")
        if self.depth_range is not None:
            low, high = self.depth_range
            if not 0 <= low < high < math.inf:
                raise ValueError(f"head {self.name} has depths from {low} to {high}")

    @property
    def is_dense(self) -> bool:
        """Whether it answers for every pixel, so that images are padded and not cropped."""
        return self.task is not Task.CLASSIFICATION


def output_of(task: Task, name: str, tasks: list[Task]) -> str:
    """The name of a head's output: the task, plus the head's name if several heads have it."""
    return str(task) if tasks.count(task) == 1 else f"{task}_{name}"
