"""The file of a user's classifier: `dinov2rt train-head` writes it, `export --head` reads it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.variants import name_of
from dinov2rt.errors import InputError, WeightsError
from dinov2rt.files import require_regular

FORMAT = "dinov2rt classifier 1"


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
        features = (self.num_layers + self.uses_mean) * architecture.embed_dim
        if self.weight.shape != (len(self.class_names), features):
            raise WeightsError(
                f"the classifier's weight is {list(self.weight.shape)}, must be "
                f"{[len(self.class_names), features]}; fit it again"
            )


def write_classifier(own: OwnClassifier, file: Path) -> None:
    """Write `own` to `file` as a .npz archive."""
    facts = {
        "format": FORMAT,
        "class_names": own.class_names,
        "num_layers": own.num_layers,
        "uses_mean": own.uses_mean,
        "variant": own.variant,
        "weights_sha256": own.weights_sha256,
    }
    with file.open("wb") as stream:
        np.savez(stream, weight=own.weight, bias=own.bias, facts=np.array(json.dumps(facts)))


def read_classifier(file: Path) -> OwnClassifier:
    """The classifier in `file`.

    Raises:
        WeightsError: it cannot be read, or is not such a file.
    """
    try:
        require_regular(file)
        with np.load(file, allow_pickle=False) as archive:
            facts = json.loads(str(archive["facts"]))
            if facts.pop("format") != FORMAT:
                raise ValueError("another format")
            facts["class_names"] = tuple(map(str, facts["class_names"]))
            weight, bias = (
                np.ascontiguousarray(archive[name], np.float32) for name in ("weight", "bias")
            )
            own = OwnClassifier(weight, bias, **facts)
    except Exception as error:  # zipfile, json and numpy each raise their own types
        raise WeightsError(
            f"{file} is no classifier ({error}); write one with dinov2rt train-head"
        ) from error
    if own.bias.shape != own.weight.shape[:1] or not np.isfinite(own.weight).all():
        raise WeightsError(f"{file} holds a damaged classifier; fit it again")
    return own
