"""The file of a user's classifier: `dinov2rt train-head` writes it, `export --head` reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.tasks.head_file import read_own_head, write_own_head
from dinov2rt.bundle.variants import name_of
from dinov2rt.errors import InputError, WeightsError
from dinov2rt.foreign import quoted, shown

FORMAT = "dinov2rt classifier 1"
_MOST_LAYERS = 1000
_LEAST_CLASSES = 2
_TYPES = {"num_layers": int, "uses_mean": bool, "variant": str, "weights_sha256": str}


@dataclass(frozen=True, slots=True, eq=False)
class OwnClassifier:
    """A linear classifier: `weight` [K, F] and `bias` [K], float32, and the names of its classes.

    It multiplies the class tokens of the last `num_layers` layers, oldest first, and with
    `uses_mean` the mean patch token of the last behind them, all after the final norm. `variant` is
    the backbone that it was fitted on, `weights_sha256` that backbone's weights.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    class_names: tuple[str, ...]
    num_layers: int
    uses_mean: bool
    variant: str
    weights_sha256: str

    def check(self, architecture: Architecture) -> None:
        """Check that the classifier was fitted on features of this backbone.

        Raises:
            InputError: another variant.
            WeightsError: shapes that do not fit.
        """
        if self.variant != name_of(architecture):
            raise InputError(
                f"the classifier was fitted on features of {self.variant}, not of "
                f"{name_of(architecture)}; "
                f"export {self.variant} with it, or fit one on features of {name_of(architecture)}"
            )
        if self.num_layers > architecture.depth:
            raise WeightsError(
                f"the classifier reads {self.num_layers} layers, and {name_of(architecture)} has "
                f"{architecture.depth}; fit it again"
            )
        features = (self.num_layers + self.uses_mean) * architecture.embed_dim
        if self.bias.shape != (len(self.class_names),):
            raise WeightsError(
                f"the classifier's bias is {list(self.bias.shape)}, must be "
                f"{[len(self.class_names)]}; fit it again"
            )
        if self.weight.shape != (len(self.class_names), features):
            raise WeightsError(
                f"the classifier's weight is {list(self.weight.shape)}, must be "
                f"{[len(self.class_names), features]}; fit it again"
            )


def write_classifier(own: OwnClassifier, file: Path) -> None:
    """Write `own` to `file` as a .npz archive."""
    facts = {
        "class_names": own.class_names,
        "num_layers": own.num_layers,
        "uses_mean": own.uses_mean,
        "variant": own.variant,
        "weights_sha256": own.weights_sha256,
    }
    write_own_head(file, FORMAT, own.weight, own.bias, facts)


def read_classifier(file: Path) -> OwnClassifier:
    """The classifier in `file`.

    Raises:
        WeightsError: it cannot be read, or is not such a file.
    """
    try:
        weight, bias, facts = read_own_head(file, FORMAT)
        return OwnClassifier(weight, bias, **_checked(facts))
    except Exception as error:  # zipfile, json and numpy each raise their own types
        raise WeightsError(
            f"{file} is no classifier ({shown(error)}); write one with dinov2rt train-head"
        ) from error


def _checked(facts: Any) -> dict[str, Any]:
    """The facts, each of its type."""
    names = facts["class_names"]
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("class_names is no list of names")
    if len(names) < _LEAST_CLASSES:
        raise ValueError(f"{len(names)} classes")
    for name, kind in _TYPES.items():
        if type(facts[name]) is not kind:
            raise ValueError(f"{name} is {quoted(facts[name])}")
    if not 1 <= facts["num_layers"] <= _MOST_LAYERS:
        raise ValueError(f"num_layers is {facts['num_layers']}")
    return {name: facts[name] for name in _TYPES} | {"class_names": tuple(names)}
