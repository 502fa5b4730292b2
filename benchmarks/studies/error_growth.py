"""Measures how a float32 rounding error grows from block to block, for given weights.

    python -m dinov2rt.benchmarks.studies.error_growth dinov2_vitg14_reg --weights synthetic:0

Compares the eager float32 model, after every third block, with float64, with itself on one thread,
and with itself when the pixels change by one unit in the last place. If the difference exceeds
1e-5, no two float32 implementations can agree to 1e-5; see docs/adr/0007.
"""

import argparse

import numpy as np
import torch

from dinov2rt.bundle.accuracy import relative_l2
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.normalization import normalize
from dinov2rt.bundle.signature import Extras, layer_output_names
from dinov2rt.bundle.variants import find_variant
from dinov2rt.export.golden import eager_outputs, golden_pixels
from dinov2rt.export.model import Dinov2, load_eager
from dinov2rt.export.weights.checkpoint import load_weights

Levels = dict[int, np.ndarray]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", type=find_variant)
    parser.add_argument("--weights", default="synthetic:0")
    arguments = parser.parse_args()
    variant = arguments.variant
    model = load_eager(variant, load_weights(arguments.weights, variant).state_dict)
    images = torch.from_numpy(normalize(golden_pixels(ImageSize(98, 126), ("chelsea.jpg",))))
    threads = torch.get_num_threads()
    reference = _levels(model, images)
    nudged = _levels(model, torch.nextafter(images, torch.tensor(torch.inf)))
    torch.set_num_threads(1)
    alone = _levels(model, images)
    torch.set_num_threads(threads)
    exact = _levels(model.double(), images.double())
    print(f"| block | float32 to float64 | 1 thread to {threads} | one unit in the last place |")
    print("| --- | --- | --- | --- |")
    for block, level in reference.items():
        print(
            f"| {block} | {relative_l2(level, exact[block]):.1e} "
            f"| {relative_l2(alone[block], level):.1e} "
            f"| {relative_l2(nudged[block], level):.1e} |"
        )
    return 0


def _levels(model: Dinov2, images: torch.Tensor) -> Levels:
    depth = model.architecture.depth
    blocks = tuple(sorted({*range(0, depth, 3), depth - 1}))
    outputs = eager_outputs(model, images, Extras(blocks))
    return {block: outputs[layer_output_names(block)[1]] for block in blocks}


if __name__ == "__main__":
    raise SystemExit(main())
