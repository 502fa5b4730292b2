"""Images unlike photographs: what they look like, and that static rounding represents them."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.variants import Variant
from dinov2rt.export.int8.activations import Steps, static_steps
from dinov2rt.export.int8.calibration import Calibration
from dinov2rt.export.int8.drawings import OTHER_DRAWINGS, drawings, other_drawings
from dinov2rt.export.int8.form import RANGED_ON, range_images
from dinov2rt.export.int8.products import products
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.weights.synthetic import synthetic_state_dict

SIZE = ImageSize(98, 126)


def test_there_are_plain_colours_and_patterns_of_two_colours() -> None:
    images = list(drawings(SIZE))
    assert {(image.shape, image.dtype.name) for image in images} == {((1, 98, 126, 3), "uint8")}
    colours = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in images]
    assert colours == [1] * 9 + [2] * 16


def test_they_are_the_same_every_time() -> None:
    for first, second in zip(drawings(SIZE), drawings(SIZE), strict=True):
        np.testing.assert_array_equal(first, second)


def test_accuracy_is_measured_on_other_patterns() -> None:
    ranged, others = [*drawings(SIZE)], [*other_drawings(SIZE)]
    assert len(others) == OTHER_DRAWINGS
    assert len({image.tobytes() for image in (*ranged, *others)}) == len(ranged) + len(others)


@pytest.fixture(scope="module", params=["dinov2_vits14_reg", "dinov2_vitg14"])
def eager(request: pytest.FixtureRequest, toy_variant: Callable[[str], Variant]) -> Dinov2:
    variant = toy_variant(request.param)
    return load_eager(variant, synthetic_state_dict(variant, 0))


@torch.inference_mode()
def clipped(model: Dinov2, steps: Mapping[str, Steps], pixels: np.ndarray) -> float:
    """The largest clipped part of an activation, in steps, over all products."""
    worst: list[float] = []

    def hook(name: str, tokens: torch.Tensor) -> None:
        off = (steps[name].rounded(tokens) - tokens).abs() / torch.from_numpy(steps[name].scale)
        worst.append(float(off.max()) - 0.5)

    for name, linear in products(model).items():
        linear.register_forward_pre_hook(lambda _, given, name=name: hook(name, given[0]))
    model.forward_features(torch.from_numpy(model.normalization(pixels)))
    return max(worst)


def test_ranges_contain_the_activations_of_plain_colours(eager: Dinov2) -> None:
    images = list(range_images(eager, Calibration.load()))
    of_photos = static_steps(eager, itertools.islice(images, len(RANGED_ON)))
    white = np.full((1, 224, 224, 3), 255, np.uint8)
    assert clipped(eager, of_photos, white) > 5
    assert clipped(eager, static_steps(eager, images), white) < 0.01
