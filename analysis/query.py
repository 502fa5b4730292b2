"""Computes query vectors with the same model and preprocessing as the indexed features."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dinov2rt.analysis.vectors import Float32Array, Token, unit_vectors
from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.errors import InputError
from dinov2rt.extraction.chunks import Failure
from dinov2rt.extraction.collection import find_chunks
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions, extract
from dinov2rt.runtime.model import Model
from dinov2rt.runtime.preprocess import Preprocess


def check_same_model(
    manifest: Manifest, metadata: Mapping[str, str], precision: str | None
) -> None:
    """Check that the features' `metadata` names this bundle's model and the requested precision.

    Raises:
        InputError: they differ; the message names both values.
    """
    own = {
        "variant": manifest.name,
        "weights_sha256": manifest.weights.sha256,
        "architecture": manifest.architecture.fingerprint,
        "precision": precision or metadata["precision"],
    }
    for key, value in own.items():
        if value != metadata.get(key, value):  # older datasets have no architecture
            raise InputError(
                f"the bundle has {key} {value}, but the features have {metadata[key]}; they cannot "
                "be compared, use the bundle that made the features"
            )


def query_vectors(
    model: Model, images: Sequence[Path], metadata: Mapping[str, str], token: Token
) -> Float32Array:
    """Unit vectors [N, D] of image files, with the preprocessing in `metadata`.

    Raises:
        InputError: an image cannot be used.
    """
    options = ExtractOptions(
        preprocess=Preprocess.parse(metadata["preprocess"]),
        snap=Snap.parse(metadata["snap"]),
        scale=metadata.get("over_max_pixels") != "refuse",
    )
    vectors = []
    with Decoders(0) as decoders:
        for _, outcome in extract(model, find_chunks(images), options, decoders):
            if isinstance(outcome, Failure):
                raise InputError(outcome.reason)
            vectors.append(getattr(outcome, token.column))
    return unit_vectors(np.stack(vectors), [str(image) for image in images])
