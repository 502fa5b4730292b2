"""Sound files of bundles, weights and heads, and what reads them."""

import io
import json
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dinov2rt.benchmarks.studies.reliability.file_kind import Kind
from dinov2rt.bundle.entries import FileEntry, GraphEntry, WeightsEntry
from dinov2rt.bundle.golden import Golden, GoldenCase
from dinov2rt.bundle.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.tasks.classifier_file import (
    OwnClassifier,
    read_classifier,
    write_classifier,
)
from dinov2rt.bundle.tasks.segmenter_file import OwnSegmenter, read_segmenter, write_segmenter
from dinov2rt.bundle.variants import find_variant
from dinov2rt.errors import InputError
from dinov2rt.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    import torch

_VARIANT = "dinov2_vits14"


def _golden() -> bytes:
    values = np.ones((1, 4, 3), np.float32)
    case = GoldenCase("28x28", np.zeros((1, 28, 28, 3), np.uint8), {"patch_tokens": values})
    with tempfile.TemporaryDirectory() as folder:
        Golden((case,)).write(Path(folder, "golden.npz"))
        return Path(folder, "golden.npz").read_bytes()


def _manifest() -> bytes:
    file = FileEntry("fp32.onnx", 1, "0" * 64)
    names = ("cls_token", "patch_tokens")
    graph = GraphEntry(Precision.FP32, 23, "pixels", names, (), (file,))
    source = WeightsEntry("synthetic:0", "0" * 64)
    architecture = find_variant(_VARIANT).architecture
    with tempfile.TemporaryDirectory() as folder:
        Manifest(SCHEMA_VERSION, architecture, source, (graph,), file).write(Path(folder))
        return Path(folder, MANIFEST_NAME).read_bytes()


def _safetensors() -> bytes:
    tensor = {"dtype": "F32", "shape": [1, 1, 384], "data_offsets": [0, 1536]}
    header = json.dumps({"cls_token": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(1536)


def _read_golden(file: Path) -> list[str]:
    for case in Golden.read(file).cases:
        if not np.isfinite(case.images).all():
            raise InputError("images that are not finite")
    return []


def _read_manifest(file: Path) -> list[str]:
    Manifest.read(file.parent)
    return []


def _read_weights(file: Path) -> list[str]:
    from dinov2rt.export.weights.checkpoint import load_weights

    load_weights(str(file), find_variant(_VARIANT))
    return []


def _state() -> dict[str, "torch.Tensor"]:
    import torch

    return {"cls_token": torch.zeros(1, 1, 384), "norm.weight": torch.ones(384)}


def _pth() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"state_dict": _state(), "epoch": 3}, buffer)
    return buffer.getvalue()


def _head_pth() -> bytes:
    import torch

    buffer = io.BytesIO()
    state = {"module.weight": torch.ones(4, 8), "module.bias": torch.zeros(4)}
    torch.save({"state_dict": state, "meta": {"loss": np.float32(1)}}, buffer)
    return buffer.getvalue()


def _classifier() -> bytes:
    dim = find_variant(_VARIANT).embed_dim
    weight, bias = np.ones((2, 2 * dim), np.float32), np.zeros(2, np.float32)
    own = OwnClassifier(weight, bias, ("cat", "dog"), 1, True, _VARIANT, "0" * 64)
    with tempfile.TemporaryDirectory() as folder:
        write_classifier(own, Path(folder, "own.npz"))
        return Path(folder, "own.npz").read_bytes()


def _segmenter() -> bytes:
    weight = np.ones((2, find_variant(_VARIANT).embed_dim), np.float32)
    colours = ((0, 0, 0), (255, 0, 0))
    own = OwnSegmenter(weight, np.zeros(2, np.float32), ("cat", "dog"), colours, _VARIANT, "0" * 64)
    with tempfile.TemporaryDirectory() as folder:
        write_segmenter(own, Path(folder, "own.npz"))
        return Path(folder, "own.npz").read_bytes()


def _config() -> bytes:
    config = {"model_type": "dinov2", "image_size": 518, "patch_size": 14, "hidden_size": 384}
    more = {"num_attention_heads": 6, "num_hidden_layers": 12, "mlp_ratio": 4}
    return json.dumps({"architectures": ["Dinov2Model"], **config, **more}, indent=2).encode()


def _preprocessor() -> bytes:
    size = {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}}
    steps = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "resample": 3}
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return json.dumps({**size, **steps, **statistics}, indent=2).encode()


def _read_head(file: Path) -> list[str]:
    from dinov2rt.export.heads.readers import read_head

    for tensor in read_head(file).values():
        tensor.float().isfinite().all()
    return []


def _read_classifier(file: Path) -> list[str]:
    read_classifier(file).check(find_variant(_VARIANT).architecture)
    return []


def _read_segmenter(file: Path) -> list[str]:
    read_segmenter(file).check(find_variant(_VARIANT).architecture)
    return []


def _read_beside(file: Path) -> list[str]:
    from dinov2rt.export.weights.source_config import check_config, stated_beside
    from dinov2rt.export.weights.source_steps import source_steps

    stated_beside(file.parent)
    Preprocess.parse(source_steps(file.parent) or "native")
    if file.name == "config.json":
        check_config(file.parent, find_variant(_VARIANT).architecture)
    return []


KINDS = {
    "manifest": Kind(MANIFEST_NAME, _manifest, _read_manifest),
    "npz": Kind("golden.npz", _golden, _read_golden),
    "safetensors": Kind("weights.safetensors", _safetensors, _read_weights),
    "pth": Kind("weights.pth", _pth, _read_weights),
    "head-pth": Kind("head.pth", _head_pth, _read_head),
    "head-safetensors": Kind("head.safetensors", _safetensors, _read_head),
    "classifier": Kind("own.npz", _classifier, _read_classifier),
    "segmenter": Kind("own.npz", _segmenter, _read_segmenter),
    "config": Kind("config.json", _config, _read_beside),
    "preprocessor": Kind("preprocessor_config.json", _preprocessor, _read_beside),
}
"""Files of bundles, weights and heads."""
