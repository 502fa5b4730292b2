"""The official heads as eager modules: literal, with the official keys below `decode_head.`.

Written after `dinov2/hub/classifiers.py`, `dinov2/hub/depth/` and mmsegmentation's `BNHead`. How
the same is computed with less work in the exported graph is in `algebra.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

BINS = 256
DPT_WIDTH = 256
BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Level:
    """Tokens of one block: `patches` [B, D, h, w] and `cls_token` [B, D]."""

    patches: Tensor
    cls_token: Tensor


Size = tuple[int, int]


def resize(values: Tensor, size: Size, *, corners: bool = False) -> Tensor:
    """[B, C, h, w] to [B, C, H, W], bilinear, without antialiasing."""
    return functional.interpolate(values, size=size, mode="bilinear", align_corners=corners)


class Classifier(nn.Module):
    """Class tokens of the levels, oldest first, then the mean patch of the last, times a matrix."""

    def __init__(self, num_features: int, num_classes: int, *, uses_mean: bool = True) -> None:
        super().__init__()
        self.uses_mean = uses_mean
        self.weight: nn.Parameter = nn.Parameter(torch.zeros(num_classes, num_features))
        self.bias: nn.Parameter = nn.Parameter(torch.zeros(num_classes))

    def features(self, levels: Sequence[Level]) -> Tensor:
        """The input of the linear layer, [B, F]."""
        parts = [level.cls_token for level in levels]
        if self.uses_mean:
            parts.append(levels[-1].patches.mean(dim=(2, 3)))
        return torch.cat(parts, dim=1)

    def forward(self, levels: Sequence[Level]) -> Tensor:
        """Logits [B, K]."""
        return functional.linear(self.features(levels), self.weight, self.bias)


class BinDepth(nn.Module):
    """Depth as a mean of uniform bins, with weights from a 1×1 convolution at four times the grid.

    Source: `DepthBaseDecodeHead.depth_pred` with `classify`, bins "UD" and "linear" normalisation.
    """

    def __init__(self, num_features: int, depth_range: tuple[float, float]) -> None:
        super().__init__()
        self.low: float
        self.high: float
        self.low, self.high = depth_range
        self.conv_depth: nn.Conv2d = nn.Conv2d(num_features, BINS, 1)

    def forward(self, levels: Sequence[Level]) -> Tensor:
        """Metres [B, 4h, 4w]."""
        parts = []
        for level in levels:
            repeated = level.cls_token[:, :, None, None].expand_as(level.patches)
            parts += [level.patches, repeated]
        rows, columns = levels[0].patches.shape[2:]
        large = resize(torch.cat(parts, dim=1), (4 * rows, 4 * columns))
        weights = torch.relu(self.conv_depth(large)) + 0.1
        weights = weights / weights.sum(dim=1, keepdim=True)
        bins = torch.linspace(self.low, self.high, BINS, dtype=weights.dtype, device=weights.device)
        return torch.einsum("bkhw,k->bhw", weights, bins)


class _Conv(nn.Module):
    """A convolution below the name `conv`, as mmcv's `ConvModule` keeps it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool) -> None:
        super().__init__()
        self.conv: nn.Conv2d = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.conv(values)
        return out


class _Unit(nn.Module):
    """`x + conv2(relu(conv1(relu(x))))`, the residual unit of a fusion."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _Conv(DPT_WIDTH, DPT_WIDTH, 3, bias=False)
        self.conv2 = _Conv(DPT_WIDTH, DPT_WIDTH, 3, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = values + self.conv2(torch.relu(self.conv1(torch.relu(values))))
        return out


class _Fusion(nn.Module):
    """Adds a finer level to what comes from the coarser ones, and doubles the size."""

    def __init__(self, *, has_skip: bool) -> None:
        super().__init__()
        self.project = _Conv(DPT_WIDTH, DPT_WIDTH, 1, bias=True)
        if has_skip:
            self.res_conv_unit1 = _Unit()
        self.res_conv_unit2 = _Unit()

    def forward(self, values: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:  # on odd grids it is smaller
            size = (values.shape[2], values.shape[3])
            values = values + self.res_conv_unit1(resize(skip, size))
        values = self.res_conv_unit2(values)
        doubled = resize(values, (2 * values.shape[2], 2 * values.shape[3]), corners=True)
        out: Tensor = self.project(doubled)
        return out


class _Reassemble(nn.Module):
    """Tokens of four levels to images of four sizes: 4, 2, 1 and ½ times the grid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        channels = dpt_channels(dim)
        self.projects: nn.ModuleList = nn.ModuleList(
            _Conv(dim, count, 1, bias=True) for count in channels
        )
        self.resize_layers: nn.ModuleList = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.readout_projects: nn.ModuleList = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU()) for _ in channels
        )

    def forward(self, levels: Sequence[Level]) -> list[Tensor]:
        images = []
        for level, readout, project, rescale in zip(
            levels, self.readout_projects, self.projects, self.resize_layers, strict=True
        ):
            tokens = level.patches.flatten(2).transpose(1, 2)
            repeated = level.cls_token[:, None].expand_as(tokens)
            mixed = readout(torch.cat((tokens, repeated), dim=2))
            image = mixed.transpose(1, 2).reshape(level.patches.shape)
            images.append(rescale(project(image)))
        return images


class DptDepth(nn.Module):
    """The depth decoder of the dense prediction transformer.

    Source: `DPTHead` in `dinov2/hub/depth/decode_heads.py`, without normalisation layers.
    """

    def __init__(self, dim: int, depth_range: tuple[float, float]) -> None:
        super().__init__()
        self.low: float
        self.high: float
        self.low, self.high = depth_range
        self.reassemble_blocks: _Reassemble = _Reassemble(dim)
        self.convs: nn.ModuleList = nn.ModuleList(
            _Conv(count, DPT_WIDTH, 3, bias=False) for count in dpt_channels(dim)
        )
        self.fusion_blocks: nn.ModuleList = nn.ModuleList(
            _Fusion(has_skip=index > 0) for index in range(4)
        )
        self.project: _Conv = _Conv(DPT_WIDTH, DPT_WIDTH, 3, bias=True)
        self.conv_depth: nn.ModuleDict = nn.ModuleDict()
        self.conv_depth["head"] = nn.Sequential(
            nn.Conv2d(DPT_WIDTH, DPT_WIDTH // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(DPT_WIDTH // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
        )

    def forward(self, levels: Sequence[Level]) -> Tensor:
        """Metres [B, 32⌈h/2⌉, 32⌈w/2⌉]."""
        images = self.reassemble_blocks(levels)
        skips = [conv(image) for conv, image in zip(self.convs, images, strict=True)]
        first, *others = self.fusion_blocks
        values = first(skips[3])
        for fusion, skip in zip(others, reversed(skips[:3]), strict=True):
            values = fusion(values, skip)
        depth = self.conv_depth["head"](torch.relu(self.project(values)))
        out: Tensor = torch.relu(depth[:, 0]) + self.low
        return out


def dpt_channels(dim: int) -> tuple[int, int, int, int]:
    """Channels of the four levels of DPT on a backbone of width `dim`."""
    return dim // 8, dim // 4, dim // 2, dim


class PixelClassifier(nn.Module):
    """Batch norm in evaluation mode, then a 1×1 convolution, at the grid's size."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.bn: nn.BatchNorm2d = nn.BatchNorm2d(num_features, eps=BATCH_NORM_EPS)
        self.conv_seg: nn.Conv2d = nn.Conv2d(num_features, num_classes, 1)

    def forward(self, levels: Sequence[Level]) -> Tensor:
        """Scores [B, K, h, w]."""
        features = torch.cat([level.patches for level in levels], dim=1)
        out: Tensor = self.conv_seg(self.bn(features))
        return out
