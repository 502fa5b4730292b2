"""Tests the limits of fp16 from both sides: with correct and with wrong implementations.

    python -m dinov2rt.benchmarks.studies.limit_sides BUNDLE [...]

A bundle needs an fp16 graph. Its fp16 graphs run on ONNX Runtime's CPU provider. Each other
implementation is emulated in PyTorch on a CPU: matrix products take values rounded to half, sum in
float32, and round their results to half. The weights are those that the bundle was made of.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dinov2rt.bundle.accuracy import AccuracyReport, compare_cases, is_pooled
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.limits import POOLED, Limits
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import NO_EXTRAS, InputFormat, output_names
from dinov2rt.errors import BundleError
from dinov2rt.export.golden import eager_case, golden_pixels
from dinov2rt.export.limits import autocast_limits
from dinov2rt.export.model import LAYER_NORM_EPS, Attention, Block, Dinov2, Mlp, load_eager
from dinov2rt.export.weights.checkpoint import load_weights
from dinov2rt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from dinov2rt.runtime.verification import compare_all, cuda_graph_on_cpu

_CASES = (
    (ImageSize(224, 224), ("astronaut.jpg", "coffee.jpg")),
    (ImageSize(98, 126), ("chelsea.jpg", "coffee.jpg")),
)


def half(values: Tensor) -> Tensor:
    """`values` rounded to float16, as float32."""
    return values.half().float()


def bfloat16(values: Tensor) -> Tensor:
    """`values` rounded to bfloat16, as float32."""
    return values.bfloat16().float()


def half_but_massive(values: Tensor) -> Tensor:
    """`values` [B, N, D] rounded to float16, except for the 8 channels with the largest values."""
    massive = values.abs().amax(dim=(0, 1)).topk(8).indices
    rounded = half(values)
    rounded[..., massive] = values[..., massive]
    return rounded


def _exact(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True, slots=True)
class Implementation:
    """A way to compute the backbone in half precision: which values are rounded, and how.

    `splits` is the number of parts that the sum of a matrix product is divided into; each part is
    rounded to float32 before the parts are added, which gives another order of summation. `drop`
    names a bias that is left out. `is_correct` is None if the implementation is not exact but
    cannot be distinguished from a correct one.
    """

    name: str
    is_correct: bool | None
    weight: Callable[[Tensor], Tensor] = half
    stream: Callable[[Tensor], Tensor] = _exact
    norm_input: Callable[[Tensor], Tensor] = _exact
    half_statistics: bool = False
    gelu: str = "none"
    splits: int = 1
    drop: str | None = None


IMPLEMENTATIONS = (
    Implementation("float32 stream and LayerNorm (the graphs of a bundle)", True),
    Implementation("the same, products summed in 2 parts", True, splits=2),
    Implementation("the same, products summed in 8 parts", True, splits=8),
    Implementation("LayerNorm reads the stream in half", True, norm_input=half),
    Implementation("residual stream in half", False, stream=half),
    Implementation("the same, its 8 largest channels in float32", False, stream=half_but_massive),
    Implementation("statistics of LayerNorm in half", False, half_statistics=True),
    Implementation("weights in bfloat16", False, weight=bfloat16),
    Implementation("stream in bfloat16", False, stream=bfloat16),
    Implementation("GELU by tanh", None, gelu="tanh"),
    Implementation("one bias of qkv dropped", False, drop="blocks.1.attn.qkv"),
    Implementation("one bias of an MLP dropped", False, drop="blocks.1.mlp.fc1"),
)


class Emulation:
    """Runs an eager model as an `Implementation` would."""

    def __init__(self, model: Dinov2, how: Implementation) -> None:
        self._model, self._how = model, how
        self._names = {module: name for name, module in model.named_modules()}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, NDArray[np.float32]]:
        """The outputs by name, for normalized images [B, 3, H, W]."""
        model, how = self._model, self._how
        tokens = how.stream(self._embed(images))
        for block in cast("Iterable[Block]", model.blocks):
            mlp = cast("Mlp", block.mlp)
            mixed = self._attend(block.attn, self._norm(block.norm1, tokens))
            tokens = how.stream(
                tokens + self._linear(block.attn.proj, mixed, cast("Tensor", block.ls1.gamma))
            )
            hidden = half(self._linear(mlp.fc1, self._norm(block.norm2, tokens)))
            hidden = half(functional.gelu(hidden, approximate=how.gelu))
            tokens = how.stream(
                tokens + self._linear(mlp.fc2, hidden, cast("Tensor", block.ls2.gamma))
            )
        normed = functional.layer_norm(
            tokens, tokens.shape[-1:], model.norm.weight, model.norm.bias, LAYER_NORM_EPS
        )
        prefix = model.architecture.num_prefix_tokens
        parts = [normed[:, 0], normed[:, 1:prefix], normed[:, prefix:]]
        names = output_names(model.architecture)
        kept = [part for part in parts if part.numel()]
        return {name: part.numpy() for name, part in zip(names, kept, strict=True)}

    def _embed(self, images: Tensor) -> Tensor:
        model = self._model
        patch = model.patch_embed.proj
        side = model.architecture.patch_size
        rows, columns = (images.shape[axis] // side for axis in (2, 3))
        product = functional.conv2d(
            half(images), self._how.weight(patch.weight), stride=patch.stride
        )
        patches = half(product).flatten(2).transpose(1, 2) + cast("Tensor", patch.bias)
        tokens = torch.cat((model.cls_token.expand(len(images), -1, -1), patches), dim=1)
        tokens = tokens + model.interpolate_pos_encoding(rows, columns)
        if not model.architecture.num_registers:
            return tokens
        registers = model.register_tokens.expand(len(images), -1, -1)
        return torch.cat((tokens[:, :1], registers, tokens[:, 1:]), dim=1)

    def _attend(self, attention: Attention, tokens: Tensor) -> Tensor:
        batch, count, dim = tokens.shape
        qkv = half(self._linear(attention.qkv, tokens))
        heads = qkv.reshape(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        mixed = half(half(scores.softmax(-1)) @ value)
        return mixed.transpose(1, 2).reshape(batch, count, dim)

    def _linear(self, layer: nn.Linear, tokens: Tensor, gamma: Tensor | None = None) -> Tensor:
        weight: Tensor = layer.weight
        bias: Tensor = layer.bias
        if gamma is not None:
            weight, bias = weight * gamma[:, None], bias * gamma
        weight = self._how.weight(weight)
        product = torch.zeros(())
        for columns in torch.arange(weight.shape[1]).chunk(self._how.splits):
            product = product + tokens[..., columns] @ weight[:, columns].T
        product = half(product)
        return product if self._names[layer] == self._how.drop else product + bias

    def _norm(self, norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
        tokens = self._how.norm_input(tokens)
        if not self._how.half_statistics:
            normed = functional.layer_norm(
                tokens, tokens.shape[-1:], norm.weight, norm.bias, LAYER_NORM_EPS
            )
            return half(normed)
        mean = half(tokens.mean(-1, keepdim=True))
        squares = half(half((tokens - mean) ** 2).mean(-1, keepdim=True))
        scaled = (tokens - mean) * half(torch.rsqrt(squares + LAYER_NORM_EPS))
        return half(scaled * norm.weight + norm.bias)


def cases_of(model: Dinov2) -> list[GoldenCase]:
    """What all implementations are compared with: photographs, and the eager model's outputs."""
    return [
        eager_case(
            model, f"{photos[0]} {size}", golden_pixels(size, photos), InputFormat.PIXELS, NO_EXTRAS
        )
        for size, photos in _CASES
    ]


def emulations(
    model: Dinov2, cases: Sequence[GoldenCase], limits: Limits
) -> dict[Implementation, AccuracyReport]:
    """How each emulated implementation compares with `cases`."""
    return {how: _report(model, how, cases, limits) for how in IMPLEMENTATIONS}


def _report(
    model: Dinov2, how: Implementation, cases: Sequence[GoldenCase], limits: Limits
) -> AccuracyReport:
    emulation = Emulation(model, how)
    results: list[tuple[str, Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]] = []
    for case in cases:
        images = torch.from_numpy(model.normalization(case.images))
        results.append((case.name, emulation(images), case.outputs))
    return AccuracyReport(Precision.FP16, how.name, limits, compare_cases(results, limits))


def graphs_on_cpu(
    bundle: Path, manifest: Manifest, cases: Sequence[GoldenCase], limits: Limits
) -> dict[str, AccuracyReport]:
    """How the bundle's fp16 graphs compare with `cases` on ONNX Runtime's CPU provider.

    Raises:
        BundleError: the bundle has no fp16 graph or none for ONNX Runtime CUDA.
    """
    graph, rebuild = manifest.graph_in(Precision.FP16), manifest.rebuild_command(bundle)
    if graph is None:
        raise BundleError(f"{bundle} holds no fp16 graph; {rebuild}")
    portable = OnnxRuntimeBackend(graph.check(bundle, rebuild=rebuild), device="cpu", threads=None)
    fused_graph, fused = cuda_graph_on_cpu(bundle, manifest)
    return {
        f"{name}, ONNX Runtime on a CPU": compare_all(backend, replace(entry, limits=limits), cases)
        for name, entry, backend in (
            ("the fp16 graph", graph, portable),
            ("the graph for ONNX Runtime CUDA", fused_graph, fused),
        )
    }


def main() -> None:
    """Print a Markdown table for each bundle on the command line."""
    for bundle in map(Path, sys.argv[1:]):
        manifest = Manifest.read(bundle)
        weights = load_weights(manifest.weights.source, manifest.architecture)
        model = load_eager(weights.architecture, weights.state_dict)
        cases = cases_of(model)
        limits = autocast_limits(model, cases, NO_EXTRAS, Precision.FP16)
        print(f"\n{bundle.name}: {limits}\n")
        print("| implementation | tokens, worst case | vectors, pooled | verdict |")
        print("| --- | --- | --- | --- |")
        found = {how.name: each for how, each in emulations(model, cases, limits).items()}
        for name, report in (graphs_on_cpu(bundle, manifest, cases, limits) | found).items():
            print(f"| {name} | {' | '.join(_cells(report))} |")


def _cells(report: AccuracyReport) -> tuple[str, str, str]:
    pooled = max(each.relative_l2 for each in report.outputs if each.case == POOLED)
    tokens = max(each.relative_l2 for each in report.outputs if not is_pooled(each.output))
    return f"{tokens:.2e}", f"{pooled:.2e}", "passes" if report else "fails"


if __name__ == "__main__":
    main()
