"""Compares the pixels of `run --preprocess source` with the libraries' own pixels.

    python -m dinov2rt.benchmarks.studies.sources.pixels

For each configuration and photograph, our pixels are compared with the image processor of
transformers that resizes with Pillow, with the steps of the one that resizes with torchvision (its
kernel is torch's, for uint8), and with the steps of timm's `create_transform` (torchvision on
Pillow images). Where torchvision and timm are installed, their own code is compared as well.
Differences are in units of 1/255, before mean and standard deviation.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from dinov2rt.export.crops import PHOTOS
from dinov2rt.export.weights.source_steps import source_steps
from dinov2rt.runtime.images import load_image

try:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
except ImportError:  # in transformers 5.0 the one that resizes with Pillow has the plain name
    from transformers.models.bit.image_processing_bit import (  # type: ignore[assignment]
        BitImageProcessor as BitImageProcessorPil,
    )

Pixels = NDArray[np.uint8]
Config = Mapping[str, Any]
Steps = Callable[[Image.Image, Config], Pixels]

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "short side 256, crop 224": {
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
    },
    "short side 518, crop 518": {
        "size": {"shortest_edge": 518},
        "crop_size": {"height": 518, "width": 518},
    },
    "square 224": {"size": {"height": 224, "width": 224}, "do_center_crop": False},
    "crop 330": {"do_resize": False, "crop_size": {"height": 330, "width": 330}},
}
TIMM: dict[str, dict[str, Any]] = {
    "crop_pct 1, 518": {"input_size": [3, 518, 518], "crop_pct": 1.0},
    "crop_pct 0.9, 224": {"input_size": [3, 224, 224], "crop_pct": 0.9},
    "crop_pct 0.875, squash, 224": {"input_size": [3, 224, 224], "crop_mode": "squash"},
}


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest and the mean difference of one configuration from one library, in 1/255."""

    library: str
    config: str
    largest: int
    mean: float


def main() -> int:
    """Print the table."""
    print("| source | configuration | largest | mean |")
    print("| --- | --- | --- | --- |")
    for found in differences():
        print(f"| {found.library} | {found.config} | {found.largest} | {found.mean:.1e} |")
    return 0


def differences() -> Iterator[Difference]:
    """Each configuration over all photographs, from each library's code."""
    has_torchvision = find_spec("torchvision") is not None
    of_transformers: dict[str, Steps] = {"transformers, Pillow": by_pillow}
    of_transformers["steps of transformers, torchvision"] = by_torchvision
    of_transformers |= (
        {"transformers, torchvision": by_torchvision_itself} if has_torchvision else {}
    )
    for name, config in TRANSFORMERS.items():
        for library, steps in of_transformers.items():
            yield compared(library, name, "preprocessor_config.json", config, steps)
    of_timm: dict[str, Steps] = {"steps of timm": by_timm}
    of_timm |= {"timm": by_timm_itself} if has_torchvision and find_spec("timm") else {}
    for name, config in TIMM.items():
        for library, steps in of_timm.items():
            yield compared(library, name, "config.json", {"pretrained_cfg": config}, steps)


def compared(
    library: str, name: str, file: str, config: Config, steps: Steps, photos: Path = PHOTOS
) -> Difference:
    """Our pixels with the `file` beside the weights holding `config`, and the library's `steps`."""
    off: list[NDArray[np.int16]] = []
    for path in sorted(photos.glob("*.jpg")):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, file).write_text(json.dumps(config))
            wanted = source_steps(Path(folder))
        assert wanted is not None, config  # noqa: S101  # none of these is beyond `run`
        ours = load_image(path, wanted).astype(np.int16)
        theirs = steps(Image.open(path).convert("RGB"), config)
        off.append(np.abs(ours - theirs).ravel())
    every = np.concatenate(off)
    return Difference(library, name, int(every.max()), float(every.mean()))


def by_pillow(image: Image.Image, config: Config) -> Pixels:
    """The pixels of transformers' processor itself, without rescaling and normalising."""
    processor = BitImageProcessorPil(do_rescale=False, do_normalize=False, **config)
    planes = processor(image, return_tensors="np")["pixel_values"][0]
    return np.asarray(planes, np.uint8).transpose(1, 2, 0)


def by_torchvision(image: Image.Image, config: Config) -> Pixels:
    """The steps of `TorchvisionBackend` in transformers, with torch's kernel."""
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    if config.get("do_resize", True):
        planes = functional.interpolate(
            planes, size=_scaled(image, config["size"]), mode="bicubic", antialias=True
        )
    if config.get("do_center_crop", True):
        planes = _cropped(planes, config["crop_size"])
    return planes[0].permute(1, 2, 0).numpy()


def by_torchvision_itself(image: Image.Image, config: Config) -> Pixels:
    """The pixels of transformers' other processor."""
    from transformers.models.bit.image_processing_bit import BitImageProcessor

    processor = BitImageProcessor(do_rescale=False, do_normalize=False, **config)
    planes = processor(image, return_tensors="pt")["pixel_values"][0]
    return np.asarray(planes, np.uint8).transpose(1, 2, 0)


def by_timm_itself(image: Image.Image, config: Config) -> Pixels:
    """The pixels of timm's transform."""
    from timm.data import create_transform, resolve_data_config

    resolved = resolve_data_config({}, pretrained_cfg=config["pretrained_cfg"])
    planes = create_transform(**resolved, normalize=False)(image)
    return np.asarray(planes, np.uint8).transpose(1, 2, 0)


def by_timm(image: Image.Image, config: Config) -> Pixels:
    """The steps of `transforms_imagenet_eval` in timm, as torchvision takes them on Pillow."""
    pretrained = config["pretrained_cfg"]
    crop = pretrained["input_size"][1]
    side = math.floor(crop / pretrained.get("crop_pct", 0.875))
    is_squashed = pretrained.get("crop_mode") == "squash"
    height, width = (side, side) if is_squashed else _scaled(image, {"shortest_edge": side})
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    return scaled[top : top + crop, left : left + crop]


def _scaled(image: Image.Image, size: Config) -> tuple[int, int]:
    if "height" in size:
        return size["height"], size["width"]
    short, long = sorted(image.size)
    side = size["shortest_edge"]
    longer = int(side * long / short)
    return (side, longer) if image.height <= image.width else (longer, side)


def _cropped(planes: torch.Tensor, size: Config) -> torch.Tensor:
    for axis, wanted in ((2, size["height"]), (3, size["width"])):
        missing = wanted - planes.shape[axis]
        if missing > 0:
            pad = [missing // 2, (missing + 1) // 2]
            planes = functional.pad(planes, [0, 0, *pad] if axis == 2 else [*pad, 0, 0])
        start = (planes.shape[axis] - wanted) // 2
        planes = planes.narrow(axis, start, wanted)
    return planes


if __name__ == "__main__":
    raise SystemExit(main())
