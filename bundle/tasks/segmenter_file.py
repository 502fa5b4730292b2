"""The file of a user's segmentation head, from `train-head --masks` to `export --head`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.tasks.head_file import read_own_head, write_own_head
from dinov2rt.bundle.variants import name_of
from dinov2rt.errors import InputError, WeightsError
from dinov2rt.foreign import quoted, shown

FORMAT = "dinov2rt segmenter 1"
MOST_CLASSES = 256
"""Class maps are uint8."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnSegmenter:
    """A linear segmentation head: `weight` [K, D], `bias` [K], float32, and its classes.

    It multiplies the last layer's patch tokens after the final norm. `palette` has the colours of
    the K classes as (red, green, blue). `variant` is the backbone that it was fitted on,
    `weights_sha256` that backbone's weights.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]
    variant: str
    weights_sha256: str

    def check(self, architecture: Architecture) -> None:
        """Check that the head was fitted on features of this backbone.

        Raises:
            InputError: another variant.
            WeightsError: shapes that do not fit.
        """
        name = name_of(architecture)
        if self.variant != name:
            raise InputError(
                f"the segmenter was fitted on features of {self.variant}, not of {name}; export "
                f"{self.variant} with it, or fit one on features of {name}"
            )
        wanted = (len(self.class_names), architecture.embed_dim)
        if self.weight.shape != wanted:
            raise WeightsError(
                f"the segmenter's weight is {list(self.weight.shape)}, must be {list(wanted)}; "
                "fit it again"
            )


def write_segmenter(own: OwnSegmenter, file: Path) -> None:
    """Write `own` to `file` as a .npz archive."""
    facts = {
        "class_names": own.class_names,
        "palette": own.palette,
        "variant": own.variant,
        "weights_sha256": own.weights_sha256,
    }
    write_own_head(file, FORMAT, own.weight, own.bias, facts)


def read_segmenter(file: Path) -> OwnSegmenter:
    """The segmentation head in `file`.

    Raises:
        WeightsError: it cannot be read, is not a segmentation head, or is damaged.
    """
    try:
        weight, bias, facts = read_own_head(file, FORMAT)
        for name in ("variant", "weights_sha256"):
            if not isinstance(facts[name], str):
                raise ValueError(f"{name} is {quoted(facts[name])}")
        names = tuple(facts["class_names"])
        if not all(isinstance(name, str) for name in names):
            raise ValueError("class_names is no list of names")
        palette = tuple(tuple(map(int, colour)) for colour in facts["palette"])
        made_by = (facts["variant"], facts["weights_sha256"])
        own = OwnSegmenter(weight, bias, names, palette, *made_by)
    except Exception as error:  # zipfile, json and numpy each raise their own types
        raise WeightsError(
            f"{file} is no segmentation head ({shown(error)}); write one with dinov2rt train-head "
            "--masks"
        ) from error
    _check_whole(own, file)
    return own


def _check_whole(own: OwnSegmenter, file: Path) -> None:
    classes = len(own.class_names)
    has_colours = len(own.palette) == classes and all(
        len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255 for colour in own.palette
    )
    if not (1 < classes <= MOST_CLASSES and has_colours):
        raise WeightsError(f"{file} holds a damaged segmentation head; fit it again")
    if own.bias.shape != (classes,) or own.weight.shape[:1] != (classes,):
        raise WeightsError(f"{file} holds a damaged segmentation head; fit it again")
