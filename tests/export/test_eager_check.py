from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinov2rt
from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.errors import InputError, WeightsError
from dinov2rt.export.crops import PHOTOS
from dinov2rt.export.eager_check import eager_cases
from dinov2rt.runtime.images import load_image

SMALL = ImageSize(28, 45)


@pytest.fixture(scope="module")
def manifest(bundle_s_reg: Path) -> Manifest:
    return Manifest.read(bundle_s_reg)


@pytest.fixture
def graph(manifest: Manifest) -> GraphEntry:
    return manifest.graphs[0]


def test_a_bundle_passes_against_the_model_computed_afresh(
    bundle_s_reg: Path, manifest: Manifest, graph: GraphEntry
) -> None:
    cases = eager_cases(manifest, graph, sizes=[SMALL, ImageSize(56, 28)])
    assert [case.name for case in cases[:2]] == ["28x45 astronaut.jpg", "28x45 chelsea.jpg"]
    assert len(cases) == 2 * len(list(PHOTOS.glob("*.jpg")))
    with dinov2rt.load(bundle_s_reg, device="cpu") as model:
        assert model.verify(cases)


def test_a_case_is_the_centre_of_the_image(manifest: Manifest, graph: GraphEntry) -> None:
    photo = PHOTOS / "chelsea.jpg"
    (case,) = eager_cases(manifest, graph, sizes=[SMALL], images=[photo])
    np.testing.assert_array_equal(case.images[0], load_image(photo)[136:164, 203:248])


def test_an_image_that_is_too_small_is_refused_with_both_sizes(
    manifest: Manifest, graph: GraphEntry, tmp_path: Path
) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (40, 30)).save(small)
    with pytest.raises(
        InputError, match=r"small\.png is 30x40 pixels, smaller than the size 28x45"
    ):
        eager_cases(manifest, graph, sizes=[SMALL], images=[small])


def test_only_photographs_that_are_large_enough_are_taken(
    manifest: Manifest, graph: GraphEntry
) -> None:
    with pytest.raises(InputError, match="as large as 5000x14; give a smaller --size"):
        eager_cases(manifest, graph, sizes=[SMALL, ImageSize(5000, 14)])


def test_other_weights_are_refused_with_both_hashes(manifest: Manifest, graph: GraphEntry) -> None:
    with pytest.raises(WeightsError) as caught:
        eager_cases(manifest, graph, sizes=[SMALL], weights="synthetic:1")
    message = str(caught.value)
    assert "synthetic:1 has SHA-256" in message
    assert f"from synthetic:0 with SHA-256 {manifest.weights.sha256}" in message
    assert "--weights" in message
