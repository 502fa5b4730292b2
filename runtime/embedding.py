"""Embeds any number of images, one vector each, with a window of images in memory."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted
from dinov2rt.named_enum import NamedEnum
from dinov2rt.runtime.cpu import usable_cores
from dinov2rt.runtime.features import Features
from dinov2rt.runtime.loading import Loader, one_by_one

Float32Array = NDArray[np.float32]

_WINDOW_BATCHES = 4
"""Images are grouped by size within this many batches; as many more are decoded ahead."""


class Pool(NamedEnum):
    """The vector that represents an image."""

    CLS = "cls"
    PATCH_MEAN = "patch_mean"
    BOTH = "cls+patch_mean"
    """Both, concatenated: 2·D numbers."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of the graph that the pool reads."""
        names = {Pool.CLS: ("cls_token",), Pool.PATCH_MEAN: ("patch_tokens",)}
        return names.get(self, ("cls_token", "patch_tokens"))


PoolName = Literal["cls", "patch_mean", "cls+patch_mean"]
"""The names of `Pool`."""


def embed(
    model: Callable[[NDArray[Any]], Features],
    images: Any,
    loader: Loader,
    pool: Pool,
    *,
    batch_size: int,
    normalize: bool,
) -> Float32Array:
    """Vectors [N, D] of `images`, in their order; see `Model.embed`.

    Args:
        model: computes the outputs of `pool` for a batch.
        images: one image or an iterable of them; read as they are needed.
        loader: makes arrays of them.
        pool: which vector stands for an image.
        batch_size: images of one call at most.
        normalize: scale each vector to length 1.

    Raises:
        InputError: an image that cannot be used; it is named by its position.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size={quoted(batch_size)}; allowed is a whole number from 1")
    parts = [
        _window_vectors(model, window, pool, batch_size)
        for window in _windows(images, loader, _WINDOW_BATCHES * batch_size)
    ]
    if not parts:
        raise InputError("there is no image to embed; give at least one")
    vectors = np.concatenate(parts)
    return _unit(vectors) if normalize else vectors


def _windows(images: Any, loader: Loader, size: int) -> Iterator[list[NDArray[Any]]]:
    """Loaded images, `size` at a time, while as many more are loaded by threads."""
    numbered = enumerate(one_by_one(images))
    pending: deque[Future[NDArray[Any]]] = deque()
    with ThreadPoolExecutor(usable_cores()) as threads:
        try:
            while True:
                ahead = itertools.islice(numbered, 2 * size - len(pending))
                pending.extend(threads.submit(_load, loader, *image) for image in ahead)
                if not pending:
                    return
                yield [pending.popleft().result() for _ in range(min(size, len(pending)))]
        finally:
            threads.shutdown(cancel_futures=True)


def _load(loader: Loader, position: int, image: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = loader.load(image)
        if np.ndim(array) != 3:
            raise InputError(
                f"got {type(array).__name__}, allowed is an array [H, W, 3], a path, bytes or a "
                "Pillow image"
            )
    except InputError as error:
        raise InputError(f"image {position}: {error}") from error
    return array


def _window_vectors(
    model: Callable[[NDArray[Any]], Features],
    images: list[NDArray[Any]],
    pool: Pool,
    batch_size: int,
) -> Float32Array:
    """Images of one shape share batches, wherever they are in the window."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        alike.setdefault(image.shape, []).append(position)
    vectors: dict[int, Float32Array] = {}
    for positions in alike.values():
        for start in range(0, len(positions), batch_size):
            part = positions[start : start + batch_size]
            features = model(np.stack([images[position] for position in part]))
            vectors.update(zip(part, _pooled(features, pool), strict=True))
    return np.stack([vectors[position] for position in range(len(images))])


def _pooled(features: Features, pool: Pool) -> Float32Array:
    """[B, D], or [B, 2·D]."""
    parts: list[NDArray[Any]] = []
    if pool is not Pool.PATCH_MEAN:
        parts.append(features.cls_token)
    if pool is not Pool.CLS:
        parts.append(features.patch_tokens.mean(axis=(1, 2), dtype=np.float64))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _unit(vectors: Float32Array) -> Float32Array:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not ((norms > 0) & np.isfinite(norms)).all():
        raise InputError("a vector is zero or not finite; check the bundle: dinov2rt verify")
    unit: Float32Array = (vectors / norms).astype(np.float32)
    return unit
