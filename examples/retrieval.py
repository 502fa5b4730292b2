"""The images of a folder that are nearest to a query image, by the cosine of their CLS tokens.

python examples/retrieval.py artifacts/dinov2_vits14_reg photos/ query.jpg

For more images than fit into memory, write features once with `dinov2rt run` and use
`dinov2rt search`.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dinov2rt
from dinov2rt.runtime.image_search import find_images


def embed(model: dinov2rt.Model, files: Iterable[Path]) -> NDArray[np.float32]:
    """Unit vectors [N, D] of image files, one forward pass each."""
    pixels = (dinov2rt.load_image(file, preprocess="classification") for file in files)
    # `map` reads the next image while the model computes.
    features = model.map(pixels, outputs=["cls_token"])
    vectors = np.concatenate([each.cls_token for each in features])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> int:
    """Print the nearest images, best first, with their cosines."""
    parser = argparse.ArgumentParser(description="nearest images of a folder")
    parser.add_argument("bundle")
    parser.add_argument("folder", type=Path)
    parser.add_argument("query", type=Path)
    parser.add_argument("--count", type=int, default=5)
    given = parser.parse_args()
    files = find_images([given.folder])
    with dinov2rt.load(given.bundle) as model:
        index = embed(model, files)
        (query,) = embed(model, [given.query])
    cosines = index @ query
    for position in np.argsort(-cosines)[: given.count]:
        print(f"{cosines[position]:.4f}  {files[position]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
