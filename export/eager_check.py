"""Runs the eager model on any images, as the reference of `verify --eager`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.geometry import ImageSize, Snap
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.signature import InputFormat
from dinov2rt.bundle.variants import variant_of
from dinov2rt.errors import InputError, WeightsError
from dinov2rt.export.crops import PHOTOS, at_least, center_crop
from dinov2rt.export.golden import COMMON_SIZE, eager_case, uneven_size
from dinov2rt.export.heads.checkpoint import EagerHead, HeadSource, load_heads
from dinov2rt.export.model import load_eager
from dinov2rt.export.weights.architecture import Stated
from dinov2rt.export.weights.checkpoint import Weights, load_weights
from dinov2rt.runtime.image_search import find_images
from dinov2rt.runtime.images import load_image

_Crop = tuple[str, NDArray[np.uint8]]


def eager_cases(
    manifest: Manifest,
    graph: GraphEntry,
    *,
    sizes: Sequence[ImageSize] | None = None,
    images: Sequence[Path] | None = None,
    weights: str | None = None,
) -> tuple[GoldenCase, ...]:
    """The eager float32 outputs that `graph` must reproduce, a case for each size and image.

    Args:
        manifest: of the bundle; its weights are loaded again, and must still be the same.
        graph: tells the input and the layers.
        sizes: centre crops of each image; None takes 224 pixels a side, the size of the position
            table, and one whose sides are no multiples of the patch, and enlarges the largest
            photograph where all are too small for one of them.
        images: files or folders; None takes the photographs that ship with the project, at each
            size those that are large enough.
        weights: where the weights are now; None takes the source that the manifest names.

    Raises:
        InputError: an image cannot be read, or is smaller than one of the sizes.
        WeightsError: the weights cannot be loaded, or are not the bundle's.
    """
    asked = default_sizes(manifest.architecture) if sizes is None else sizes
    _check_sizes(asked, manifest.architecture)
    if images is None:
        crops = list(_photo_crops(asked, enlarges=sizes is None))
    else:
        crops = list(_crops(find_images(images), asked))
    state = weights_of(manifest, weights).state_dict
    model = load_eager(manifest.architecture, state)
    model.task_heads = heads_of(manifest)
    input_format = InputFormat(graph.input_name)
    return tuple(
        eager_case(model, name, crop[None], input_format, graph.extras) for name, crop in crops
    )


def default_sizes(architecture: Architecture) -> tuple[ImageSize, ...]:
    """The sizes that are compared by default: three of the golden cases."""
    sizes = (COMMON_SIZE, architecture.native_size, uneven_size(architecture))
    return tuple(dict.fromkeys(sizes))


def _check_sizes(sizes: Sequence[ImageSize], architecture: Architecture) -> None:
    for size in sizes:
        size.snapped(Snap.CROP, architecture.patch_size)  # refuses what holds no patch


def weights_of(manifest: Manifest, source: str | None = None) -> Weights:
    """Load the weights that a bundle was exported from; from `source` if they were moved.

    Raises:
        WeightsError: they cannot be loaded, or have changed.
    """
    exported = manifest.weights
    source = exported.pinned_source if source is None else source
    wanted = variant_of(manifest.architecture) or manifest.architecture
    stated = Stated.of(manifest.architecture)  # whatever stands beside the weights by now
    loaded = load_weights(source, wanted, exported.prefix, stated)
    if loaded.entry.sha256 != exported.sha256:
        raise WeightsError(
            f"{loaded.entry.source} has SHA-256 {loaded.entry.sha256}, the bundle was exported "
            f"from {exported.source} with SHA-256 {exported.sha256}; give those weights "
            "with --weights, or export the bundle again"
        )
    return loaded


def heads_of(manifest: Manifest) -> tuple[EagerHead, ...]:
    """The heads that a bundle was exported with, loaded again.

    Raises:
        WeightsError: their weights cannot be had, or are others by now.
    """
    sources = tuple(HeadSource(head.name, head.source) for head in manifest.heads)
    heads = load_heads(sources, manifest.architecture)
    for loaded, exported in zip(heads, manifest.heads, strict=True):
        if loaded.entry.sha256 != exported.sha256:
            raise WeightsError(
                f"head {exported.name} from {exported.source} has SHA-256 {loaded.entry.sha256}, "
                f"the bundle was exported with {exported.sha256}; put that file back, or export "
                "the bundle again"
            )
    return heads


def _photo_crops(sizes: Sequence[ImageSize], *, enlarges: bool) -> Iterator[_Crop]:
    photos = [(path, load_image(path)) for path in find_images([PHOTOS])]
    largest, image_of_it = max(photos, key=lambda photo: photo[1].size)
    for size in sizes:
        fitting = [(path, image) for path, image in photos if _fits(size, image)]
        if not fitting and enlarges:
            fitting = [(largest, at_least(image_of_it, size))]
        if not fitting:
            raise InputError(
                f"none of the photographs that ship with dinov2rt is as large as {size}; "
                "give a smaller --size, or larger images with --image"
            )
        for path, image in fitting:
            yield _crop(path, image, size)


def _crops(paths: Sequence[Path], sizes: Sequence[ImageSize]) -> Iterator[_Crop]:
    for path in paths:
        image = load_image(path)
        for size in sizes:
            if not _fits(size, image):
                raise InputError(
                    f"{path} is {ImageSize(*image.shape[:2])} pixels, smaller than the size "
                    f"{size}; give a smaller --size, or a larger image"
                )
            yield _crop(path, image, size)


def _fits(size: ImageSize, image: NDArray[np.uint8]) -> bool:
    height, width = image.shape[:2]
    return bool(size.height <= height and size.width <= width)


def _crop(path: Path, image: NDArray[np.uint8], size: ImageSize) -> _Crop:
    crop = center_crop(image, size)
    return f"{size} {path.name}", crop
