"""Computes the golden outputs: the eager float32 model on real photographs."""

import itertools

import numpy as np
import torch

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.signature import NO_EXTRAS, Extras, FloatArray, InputFormat, output_names
from dinov2rt.export.crops import PHOTOS, at_least, center_crop
from dinov2rt.export.heads.answers import center_padded, head_outputs, pads_images
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.portable.static import StaticShape
from dinov2rt.export.weights.checkpoint import Weights
from dinov2rt.runtime.images import load_image

_PHOTOS = ("astronaut.jpg", "coffee.jpg", "chelsea.jpg", "hubble.jpg")
COMMON_SIZE = ImageSize(224, 224)


def golden_cases(
    model: Dinov2, input_format: InputFormat, extras: Extras, static: StaticShape | None = None
) -> tuple[GoldenCase, ...]:
    """The eager model's outputs on the photographs that ship with the project.

    With `static` there is one more case, of that shape.
    """
    by_name = {
        str(size): golden_pixels(size, photos)
        for size, photos in _photos_by_size(model.architecture).items()
    }
    if static is not None:
        photos = tuple(itertools.islice(itertools.cycle(_PHOTOS), static.batch))
        by_name[f"static {static}"] = golden_pixels(static.size, photos)
    return tuple(
        eager_case(model, name, pixels, input_format, extras) for name, pixels in by_name.items()
    )


def _photos_by_size(architecture: Architecture) -> dict[ImageSize, tuple[str, ...]]:
    """The photographs by size; each size tests something else.

    A batch at the common size; few and unequal rows and columns; sides that are not multiples of
    the patch; the native grid, where the position table is not resampled.
    """
    photos: dict[ImageSize, tuple[str, ...]] = {
        COMMON_SIZE: ("astronaut.jpg", "coffee.jpg"),
        small_size(architecture): ("chelsea.jpg",),
        uneven_size(architecture): ("coffee.jpg",),
    }
    photos.setdefault(architecture.native_size, ("hubble.jpg",))
    return photos


def small_size(architecture: Architecture) -> ImageSize:
    """Few and unequal rows and columns: 98 x 126 for a patch of 14."""
    return ImageSize(7 * architecture.patch_size, 9 * architecture.patch_size)


def uneven_size(architecture: Architecture) -> ImageSize:
    """Sides that are no multiples of the patch: 231 x 345 for one of 14."""
    side = architecture.patch_size
    return ImageSize(16 * side + side // 2, 24 * side + side // 2 + side // 7)


def golden_pixels(size: ImageSize, photos: tuple[str, ...]) -> np.ndarray:
    """Centre crops of the photographs, uint8 [B, H, W, 3]; too small ones are enlarged."""
    return np.stack(
        [center_crop(at_least(load_image(PHOTOS / photo), size), size) for photo in photos]
    )


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
        images = center_padded(images, model.architecture.patch_size)
    features = model.forward_features(images)
    values = [features["x_norm_clstoken"]]
    if model.architecture.num_registers:
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
    names = output_names(model.architecture, extras)
    outputs = {name: value.float().numpy() for name, value in zip(names, values, strict=True)}
    return outputs | head_outputs(model, images, size)


def source_difference(loaded: Weights, of_source: Architecture) -> str:
    """How far the features are from the features of the library that the weights are from."""
    official = load_eager(loaded.architecture, loaded.state_dict)
    size = COMMON_SIZE
    if size.grid(official.architecture.patch_size) == official.architecture.native_grid:
        size = small_size(official.architecture)
    pixels = golden_pixels(size, ("astronaut.jpg",))
    ours, theirs = (
        eager_case(model, str(size), pixels, InputFormat.PIXELS, NO_EXTRAS).outputs["patch_tokens"]
        for model in (official, load_eager(of_source, loaded.state_dict))
    )
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    return (
        f"positions are resampled as in the official code; {loaded.library} resamples "
        f"otherwise: at {size} patch tokens differ by {error:.1e} (relative L2); --interpolation "
        "source follows it"
    )
