"""Fits a linear segmentation head on patch tokens and masks, for `export --head`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.analysis.logistic import Matrix, check_options, fit_logistic
from dinov2rt.analysis.masks import IGNORED, MaskFolder, read_mask
from dinov2rt.analysis.vectors import Collection, open_collection
from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.tasks.bilinear import resized_bands
from dinov2rt.bundle.tasks.classes import spread_colours
from dinov2rt.bundle.tasks.segmenter_file import OwnSegmenter
from dinov2rt.errors import InputError
from dinov2rt.extraction.image_features import ImageFeatures
from dinov2rt.extraction.parquet import patch_size_of, read_rows
from dinov2rt.runtime.preprocess import Preprocess

_SNAPS = (Snap.PAD, Snap.CROP)

Confusion = NDArray[np.int64]
"""Counts of pixels [K + 1, K]: rows are the mask's classes, the last for all others."""


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """How a segmentation head is fitted.

    `held_out` is the share of the images that are used to measure the accuracy, with a head that
    was fitted without them. `penalty` is the C of scikit-learn's logistic regression. At most
    `patches` patches are fitted on, as many of each image. `names` maps the values of masks to
    names; others are named by their value.

    Raises:
        InputError: a value is not allowed.
    """

    held_out: float = 0.2
    penalty: float = 1.0
    seed: int = 0
    patches: int = 100_000
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_options(self.held_out, self.penalty, self.seed)
        if self.patches < 2:
            raise InputError(f"{self.patches} patches; allowed is a whole number from 2")
        if len(set(self.names)) < len(self.names):
            raise InputError("class names occur twice; give each class a name of its own")


@dataclass(frozen=True, slots=True)
class PixelAccuracy:
    """The accuracy of class maps on images held out, over pixels that have a class.

    `pixels` is the share of pixels of the right class. `ious` has a class's intersection over
    union, of classes that occur in the masks or in the maps; `mean_iou` is the mean of them.
    """

    pixels: float
    mean_iou: float
    ious: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class TrainedSegmenter:
    """A head fitted on all images, and the accuracy that was measured on held-out images.

    `patches` is how many patches it was fitted on.
    """

    segmenter: OwnSegmenter
    held_out: PixelAccuracy
    images: int
    patches: int
    is_synthetic: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Patches:
    """Tokens [N, D] of chosen patches, their classes [N], and the images that they are of [N]."""

    tokens: Matrix
    classes: NDArray[np.int64]
    image: NDArray[np.int64]

    def fit(self, chosen: NDArray[np.bool_], penalty: float) -> "_Head":
        """Fit on the patches of the `chosen` images.

        Raises:
            InputError: they are of fewer than two classes.
        """
        some = chosen[self.image]
        classes = np.unique(self.classes[some])
        if len(classes) < 2:
            raise InputError(
                f"patches of {len(classes)} classes to fit on; two classes are the least, each "
                f"with most pixels of a patch (of {chosen.sum()} of {len(chosen)} images; others "
                "are held out)"
            )
        return _Head(*fit_logistic(self.tokens[some], self.classes[some], penalty))


@dataclass(frozen=True, slots=True, eq=False)
class _Head:
    """Weight [K, D] and bias [K], and the values of masks that its K classes have."""

    weight: Matrix
    bias: Matrix
    values: NDArray[np.int64]

    def confusion(self, row: ImageFeatures, mask: NDArray[np.uint8]) -> Confusion:
        """Compare its class map of the image `row`, at the size of `mask`, with the mask."""
        assert row.patch_tokens is not None  # noqa: S101  # checked for the whole dataset
        classes = len(self.values)
        scores = (row.patch_tokens @ self.weight.T + self.bias).T
        planes = np.ascontiguousarray(scores).reshape(classes, row.grid.rows, row.grid.cols)
        index = np.full(256, classes)
        index[self.values] = np.arange(classes)
        counts = np.zeros((classes + 1, classes), np.int64)
        for band, values in resized_bands(planes, (mask.shape[0], mask.shape[1])):
            known = mask[band] != IGNORED
            pairs = index[mask[band][known]] * classes + values.argmax(axis=0)[known]
            counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
        return counts


def train_segmenter(
    features: Path,
    masks: Path,
    options: SegmentOptions,
    progress: Callable[[str], None] = lambda _: None,
) -> TrainedSegmenter:
    """Fit a linear segmentation head on the patch tokens at `features` and the folder `masks`.

    A patch has the class of most of its pixels; patches with most pixels ignored are left out.
    `progress` is told each step.

    Raises:
        InputError: features or masks cannot be used, or there are fewer than two classes or images.
        MissingDependencyError: scikit-learn, pyarrow or Pillow is not installed.
    """
    collection = open_collection([features])
    folder = _folder(collection, masks)
    held_out = _held_out(len(collection), options)
    progress(f"reading the features and masks of {len(collection)} images")
    patches = _read(collection, folder, options)
    progress("fitting without the images held out, and measuring the accuracy on those")
    partial = patches.fit(~held_out, options.penalty)
    measured = _measured(collection, folder, partial, held_out, options)
    progress(f"fitting on {len(patches.classes)} patches of all images")
    head = patches.fit(np.ones_like(held_out), options.penalty)
    own = OwnSegmenter(
        weight=head.weight,
        bias=head.bias,
        class_names=tuple(_name(value, options) for value in head.values),
        palette=_palette(collection, folder, head.values),
        variant=collection.metadata["variant"],
        weights_sha256=collection.metadata["weights_sha256"],
    )
    count = len(patches.classes)
    return TrainedSegmenter(own, measured, len(collection), count, collection.is_synthetic)


def _folder(collection: Collection, masks: Path) -> MaskFolder:
    metadata = collection.metadata
    has_patches = "patch_tokens" in collection.dataset.schema.names
    if metadata.get("patch_tokens") != "yes" or not has_patches:
        raise InputError(
            "the features hold no patch tokens; compute them with dinov2rt run --patch-tokens"
        )
    snap, preprocess = Snap.parse(metadata["snap"]), Preprocess.parse(metadata["preprocess"])
    if snap not in _SNAPS or preprocess.crop is not None:
        raise InputError(
            f"the features were computed with --snap {snap} and --preprocess {preprocess.name}; "
            f"masks go with --snap {' or '.join(_SNAPS)}, and a preprocess that does not crop"
        )
    if not masks.is_dir():
        raise InputError(f"{masks} is no folder; give the folder of the masks")
    return MaskFolder(masks, preprocess, snap, patch_size_of(metadata))


def _rows(collection: Collection) -> Iterator[ImageFeatures]:
    for file in collection.dataset.files:
        yield from read_rows(Path(file))


def _held_out(images: int, options: SegmentOptions) -> NDArray[np.bool_]:
    if images < 2:
        raise InputError("features of one image; give two or more, since some are held out")
    count = min(max(1, round(options.held_out * images)), images - 1)
    chosen = np.random.default_rng(options.seed).permutation(images)[:count]
    return np.isin(np.arange(images), chosen)


def _read(collection: Collection, folder: MaskFolder, options: SegmentOptions) -> _Patches:
    rng = np.random.default_rng(options.seed)
    most = max(1, options.patches // len(collection))
    tokens, classes, image = [], [], []
    for index, row in enumerate(_rows(collection)):
        labels = folder.patch_labels(row)
        known = np.flatnonzero(labels >= 0)
        if len(known) > most:
            known = np.sort(rng.choice(known, most, replace=False))
        assert row.patch_tokens is not None  # noqa: S101  # checked for the whole dataset
        tokens.append(row.patch_tokens[known])
        classes.append(labels[known])
        image.append(np.full(len(known), index))
    matrix = np.concatenate(tokens)
    if not np.isfinite(matrix).all():
        raise InputError("features hold NaN or infinity; check the bundle: dinov2rt verify")
    return _Patches(matrix, np.concatenate(classes), np.concatenate(image))


def _measured(
    collection: Collection,
    folder: MaskFolder,
    head: _Head,
    held_out: NDArray[np.bool_],
    options: SegmentOptions,
) -> PixelAccuracy:
    classes = len(head.values)
    total = np.zeros((classes + 1, classes), np.int64)
    for is_held_out, row in zip(held_out, _rows(collection), strict=True):
        if is_held_out:
            total += head.confusion(row, folder.target(row))
    if not total.sum():
        raise InputError("no pixel of the images held out has a class; give more masks")
    right, of_mask, of_map = np.diag(total), total.sum(axis=1)[:-1], total.sum(axis=0)
    union = of_mask + of_map - right
    ious = {
        _name(value, options): float(right[at] / union[at])
        for at, value in enumerate(head.values)
        if union[at]
    }
    return PixelAccuracy(float(right.sum() / total.sum()), float(np.mean([*ious.values()])), ious)


def _name(value: int, options: SegmentOptions) -> str:
    return options.names[value] if value < len(options.names) else str(value)


def _palette(
    collection: Collection, folder: MaskFolder, values: NDArray[np.int64]
) -> tuple[tuple[int, ...], ...]:
    """The colours of the first mask's palette, or colours that are far apart."""
    _, colours = read_mask(folder.file_of(next(_rows(collection)).key))
    if colours is None or len(colours) <= int(values.max()):
        return spread_colours(map(int, values))
    return tuple(colours[value] for value in values)
