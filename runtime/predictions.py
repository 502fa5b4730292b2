"""The predictions of heads: classes of images, depth, and classes of pixels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.signature import FloatArray
from dinov2rt.bundle.tasks.bilinear import resize_bilinear
from dinov2rt.errors import InputError


@dataclass(frozen=True, slots=True)
class RankedClass:
    """One class of an image's ranking: its index, name, and softmax probability."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """Classes of B images: `logits` [B, K], and the `names` of the K classes.

    Example:
        >>> pets = Classification(np.array([[0.0, 2.0]], np.float32), ("cat", "dog"))
        >>> [(best.name, round(best.probability, 2)) for best in pets.top(2)[0]]
        [('dog', 0.88), ('cat', 0.12)]
    """

    logits: FloatArray
    names: tuple[str, ...]

    @property
    def probabilities(self) -> FloatArray:
        """Softmax of the logits, float32 [B, K]."""
        shifted = np.exp(self.logits - self.logits.max(axis=1, keepdims=True), dtype=np.float64)
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)

    def top(self, k: int = 5) -> list[list[RankedClass]]:
        """The k most probable classes of each image, the most probable first.

        Raises:
            InputError: `k` is not between 1 and the number of classes.
        """
        if not 1 <= k <= self.logits.shape[1]:
            raise InputError(f"top {k} of {self.logits.shape[1]} classes; allowed is 1 to all")
        probabilities = self.probabilities
        order = np.argsort(-self.logits, axis=1, kind="stable")[:, :k]
        return [
            [RankedClass(int(i), self.names[i], float(row[i])) for i in best]
            for best, row in zip(order, probabilities, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: int) -> "Classification":
        """The answer for one image, with B = 1."""
        return replace(self, logits=_one(self.logits, index))


@dataclass(frozen=True, slots=True, eq=False)
class Depth:
    """Depth of B images of one size: `metres` float32 [B, H, W], within `depth_range`."""

    metres: FloatArray
    depth_range: tuple[float, float]

    def __len__(self) -> int:
        return len(self.metres)

    def __getitem__(self, index: int) -> "Depth":
        """The answer for one image, with B = 1."""
        return replace(self, metres=_one(self.metres, index))


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Classes of every pixel of B images of one size: `classes` uint8 [B, H, W].

    `names` and `palette` (uint8 [K, 3], RGB) describe the K classes. `scores` are the head's own
    logits at the size of the patch grid, float32 [B, K, h, w], if they were requested.
    """

    classes: NDArray[np.uint8]
    names: tuple[str, ...]
    palette: NDArray[np.uint8]
    scores: FloatArray | None = field(default=None)

    def full_scores(self) -> FloatArray:
        """Scores at the images' size, float32 [B, K, H, W]: the largest class is `classes`.

        Raises:
            InputError: scores were not requested.
        """
        if self.scores is None:
            raise InputError("scores were not asked for; call predict(..., scores=True)")
        height, width = self.classes.shape[1:]
        return resize_bilinear(self.scores, (height, width))

    def colours(self) -> NDArray[np.uint8]:
        """The class map in the palette's colours, uint8 [B, H, W, 3]."""
        return self.palette[self.classes]

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> "Segmentation":
        """The answer for one image, with B = 1."""
        scores = None if self.scores is None else _one(self.scores, index)
        return replace(self, classes=_one(self.classes, index), scores=scores)


Prediction = Classification | Depth | Segmentation
_Kind = TypeVar("_Kind", Classification, Depth, Segmentation)


@dataclass(frozen=True, slots=True, eq=False)
class Predictions(Mapping[str, Prediction]):
    """The answers of several heads, by the heads' names."""

    by_head: Mapping[str, Prediction]

    @property
    def classification(self) -> Classification:
        """The answer of the only classifier."""
        return self._only(Classification)

    @property
    def depth(self) -> Depth:
        """The answer of the only depth head."""
        return self._only(Depth)

    @property
    def segmentation(self) -> Segmentation:
        """The answer of the only segmentation head."""
        return self._only(Segmentation)

    def __getitem__(self, head: str) -> Prediction:
        if head not in self.by_head:
            raise InputError(f"head {head!r} did not answer; these did: {', '.join(self.by_head)}")
        return self.by_head[head]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_head)

    def __len__(self) -> int:
        return len(self.by_head)

    def of_image(self, index: int) -> "Predictions":
        """The answers for one image, with B = 1."""
        return Predictions({name: each[index] for name, each in self.by_head.items()})

    def _only(self, kind: type[_Kind]) -> _Kind:
        found = [each for each in self.by_head.values() if isinstance(each, kind)]
        if len(found) != 1:
            raise InputError(
                f"{len(found)} heads answer with {kind.__name__}; take one by its name: "
                f"{', '.join(self.by_head)}"
            )
        return found[0]


def _one(values: Any, index: int) -> Any:
    position = range(len(values))[index]
    return values[position : position + 1]
