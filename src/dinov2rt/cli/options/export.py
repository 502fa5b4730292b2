"""The arguments of `dinov2rt export`, and what their texts mean."""

import re
from argparse import ArgumentParser
from pathlib import Path

from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.normalization import Normalization
from dinov2rt.bundle.signature import OPSET, InputFormat
from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import InputError

AUTO = "auto"
INPUTS = {"pixels": InputFormat.PIXELS, "normalized": InputFormat.IMAGES}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument(
        "variant",
        metavar="VARIANT",
        help="what the weights must be, e.g. dinov2_vits14_reg (see: info); or auto: whatever they "
        "are",
    )
    parser.add_argument(
        "--weights",
        default="official",
        metavar="W",
        help="official (default), synthetic:SEED, a checkpoint (.pth, .pt, .ckpt, .bin, "
        ".safetensors), a folder of transformers or timm, or OWNER/NAME on the Hugging Face hub",
    )
    parser.add_argument(
        "--prefix",
        metavar="P",
        help="what the names of the backbone begin with in the checkpoint, such as "
        "teacher.backbone (default: where a whole backbone is)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the bundle (default: artifacts/VARIANT)"
    )
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default="pixels",
        help="pixels: uint8 [B, H, W, 3] (default); normalized: float32 [B, 3, H, W]",
    )
    parser.add_argument(
        "--layers",
        help="intermediate blocks to return as well: indices from 0 (2,5,8,11), or the last few "
        "(last4)",
    )
    parser.add_argument(
        "--unnormed",
        action="store_true",
        help="return the tokens of --layers as they are, without the final norm",
    )
    parser.add_argument(
        "--x-prenorm",
        action="store_true",
        help="return the last block's tokens before the final norm as well",
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="return the CLS token's attention to each patch in the last block as well, per head",
    )
    parser.add_argument(
        "--head",
        metavar="NAME[=SOURCE],...",
        help="task heads in the same graph: linear, linear4, nyu-linear, nyu-linear4, nyu-dpt, "
        "kitti-linear, kitti-linear4, kitti-dpt, ade20k-linear, ade20k-ms, voc2012-linear, "
        "voc2012-ms; SOURCE is official (default), a .pth or .safetensors file, or synthetic:SEED; "
        "classifier=FILE and segmenter=FILE are your own, by train-head",
    )
    parser.add_argument(
        "--precision",
        default="fp32,fp16",
        metavar="P,...",
        help="a graph for each of fp32, fp16, bf16 and int8 (default: fp32,fp16); bf16 is for "
        "TensorRT (a CPU computes the fp32 graph in bf16); int8, for CPUs, takes minutes to be "
        "searched for",
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        type=Path,
        default=[],
        metavar="PHOTO",
        help="photographs like those that the model is for, files or folders: int8 weights are "
        "rounded for them, and its accuracy is measured on them (default: four that ship with "
        "dinov2rt)",
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=OPSET,
        metavar="N",
        help=f"of the graphs: {OPSET} (default), or 17, 20 or 21 for ONNX Runtime from 1.15, 1.17 "
        "or 1.18 on",
    )
    parser.add_argument(
        "--static",
        metavar="BxHxW",
        help="write each graph once more for this one batch and size, for engines that take no "
        "other; pixels, such as 1x224x224",
    )
    _add_architecture(parser)
    parser.add_argument("--force", action="store_true", help="replace the bundle that is there")


def _add_architecture(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "of the weights, where neither their tensors nor the files beside them tell it"
    )
    group.add_argument(
        "--mean",
        metavar="R,G,B",
        help="of the input, for pixels in 0..1 (default: as the files beside the weights say, else "
        "ImageNet's)",
    )
    group.add_argument("--std", metavar="R,G,B", help="standard deviation, as --mean")
    group.add_argument(
        "--antialias",
        choices=("on", "off"),
        help="of the resampled position table (default: on with registers, off without)",
    )
    group.add_argument(
        "--offset",
        type=float,
        metavar="F",
        help="added to the grid that the table is resampled to (default: 0 with registers, 0.1 "
        "without)",
    )
    group.add_argument(
        "--interpolation",
        choices=("official", "source"),
        default="official",
        help="of the position table: as the official code does (default), or as the library does "
        "that the weights are from, transformers or timm",
    )
    group.add_argument(
        "--num-heads", type=int, metavar="N", help="of attention (default: heads are 64 wide)"
    )
    group.add_argument(
        "--grid", metavar="ROWSxCOLUMNS", help="of the position table (default: a square)"
    )


def parse_normalization(mean: str | None, std: str | None) -> Normalization | None:
    """Statistics from "0.5,0.5,0.5" each; None where neither is given.

    Raises:
        InputError: one without the other, or anything but three numbers.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError("--mean and --std belong together; give both, or neither")
    try:
        (red, green, blue), (of_red, of_green, of_blue) = (
            [float(value) for value in text.split(",")] for text in (mean, std)
        )
        return Normalization((red, green, blue), (of_red, of_green, of_blue))
    except ValueError as error:
        raise InputError(
            f"--mean {mean!r} --std {std!r}; allowed are three numbers each, a std above 0, "
            "such as 0.485,0.456,0.406"
        ) from error


def parse_grid(text: str) -> Grid:
    """Rows and columns from "16x32".

    Raises:
        InputError: anything else.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise InputError(f"--grid {text!r}; allowed is ROWSxCOLUMNS in patches, such as 16x32")
    return Grid(int(match[1]), int(match[2]))


def parse_layers(text: str, variant: Variant | None) -> tuple[int, ...]:
    """Block indices, ascending, from "2,5,8,11" or "last4".

    Without a `variant` the depth is not known yet: the last four are -4 to -1 then.

    Raises:
        InputError: anything else, or a block that `variant` does not have.
    """
    depth = 0 if variant is None else variant.depth
    last = re.fullmatch(r"last(\d{1,4})", text)
    layers = tuple(sorted(range(depth - int(last[1]), depth) if last else _numbers(text)))
    there = set(
        layers if variant is None and (last or min(layers, default=-1) >= 0) else range(depth)
    )
    if not layers or not set(layers) <= there or len(set(layers)) < len(layers):
        name, end = ("auto", "the last") if variant is None else (variant.name, str(depth - 1))
        raise InputError(
            f"layers {text!r}; allowed for {name} are different block indices from 0 to {end}, "
            f"such as 2,5,8,11, or lastN with N from 1 to {depth or 'the depth'}, such as last4"
        )
    return layers


def _numbers(text: str) -> list[int]:
    try:
        return [int(index) for index in text.split(",")]
    except ValueError:
        return []
