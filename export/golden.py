"""Computes the golden outputs: the eager float32 model on real photographs."""

from pathlib import Path

import numpy as np
import torch

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.signature import Extras, FloatArray, InputFormat, output_names
from dinov2rt.export.heads.answers import center_padded, head_outputs, pads_images
from dinov2rt.export.model import Dinov2
from dinov2rt.runtime.images import load_image

PHOTOS = Path(__file__).parent / "photos"

# Each tells something apart: a batch at the common size; few and unequal rows and columns; sides
# that are no multiples of 14; the trained grid, where the position table is used as it is.
_CASES = (
    (ImageSize(224, 224), ("astronaut.jpg", "coffee.jpg")),
    (ImageSize(98, 126), ("chelsea.jpg",)),
    (ImageSize(231, 345), ("coffee.jpg",)),
    (ImageSize(518, 518), ("hubble.jpg",)),
)


def golden_cases(
    model: Dinov2, input_format: InputFormat, extras: Extras
) -> tuple[GoldenCase, ...]:
    """The eager model's outputs on the photographs that ship with the project."""
    return tuple(
        eager_case(model, str(size), golden_pixels(size, photos), input_format, extras)
        for size, photos in _CASES
    )


def golden_pixels(size: ImageSize, photos: tuple[str, ...]) -> np.ndarray:
    """Centre crops of the photographs, uint8 [B, H, W, 3]."""
    return np.stack([_center(load_image(PHOTOS / photo), size) for photo in photos])


def eager_case(
    model: Dinov2,
    name: str,
    pixels: np.ndarray,
    input_format: InputFormat,
    extras: Extras,
) -> GoldenCase:
    """The eager model's outputs for `pixels`, uint8 [B, H, W, 3], one image at a time."""
    normalized = model.normalization(pixels)
    batches = [eager_outputs(model, torch.from_numpy(image[None]), extras) for image in normalized]
    outputs = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    images = pixels if input_format is InputFormat.PIXELS else normalized
    return GoldenCase(name=name, images=images, outputs=outputs)


@torch.inference_mode()
def eager_outputs(model: Dinov2, images: torch.Tensor, extras: Extras) -> dict[str, FloatArray]:
    """The graph's outputs by name, from the eager model on `images` float32 [B, 3, H, W]."""
    size = (images.shape[2], images.shape[3])
    if pads_images(model.task_heads):
        images = center_padded(images)
    features = model.forward_features(images)
    values = [features["x_norm_clstoken"]]
    if model.variant.num_registers:
        values.append(features["x_norm_regtokens"])
    values.append(features["x_norm_patchtokens"])
    if extras.layers:
        for patches, cls_token in model.get_intermediate_layers(
            images, extras.layers, return_class_token=True, norm=not extras.unnormed
        ):
            values += [cls_token, patches]
    if extras.x_prenorm:
        values.append(features["x_prenorm"])
    if extras.attention:
        values.append(model.cls_attention(images))
    names = output_names(model.variant, extras)
    outputs = {name: value.float().numpy() for name, value in zip(names, values, strict=True)}
    return outputs | head_outputs(model, images, size)


def _center(image: np.ndarray, size: ImageSize) -> np.ndarray:
    top = (image.shape[0] - size.height) // 2
    left = (image.shape[1] - size.width) // 2
    return image[top : top + size.height, left : left + size.width]
