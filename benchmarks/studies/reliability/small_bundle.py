"""A bundle that loads in milliseconds, for studies of what surrounds a model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from dinov2rt.bundle.entries import FileEntry, GraphEntry, WeightsEntry
from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.golden import Golden, GoldenCase
from dinov2rt.bundle.manifest import SCHEMA_VERSION, Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import find_variant

_OUTPUTS = ("cls_token", "patch_tokens")


def write_small_bundle(bundle: Path, gain: float = 1.0) -> None:
    """Make `bundle`, whose tokens are mean colours times `gain`, repeated to the width of ViT-S."""
    variant = find_variant("dinov2_vits14")
    bundle.mkdir(parents=True)
    _save_graph(bundle / "fp32.onnx", gain, variant.embed_dim)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    patches = pixels.reshape(2, 2, 14, 3, 14, 3).mean((2, 4), dtype=np.float32)
    means = (pixels.mean((1, 2), dtype=np.float32), patches.reshape(2, 6, 3))
    repeats = variant.embed_dim // 3
    wide = (gain * np.tile(mean, (1,) * (mean.ndim - 1) + (repeats,)) for mean in means)
    outputs = {name: each.astype(np.float32) for name, each in zip(_OUTPUTS, wide, strict=True)}
    Golden((GoldenCase("28x42", pixels, outputs),)).write(bundle / "golden.npz")
    files = tuple(FileEntry.of(bundle, name) for name in ("fp32.onnx", "fp32.onnx.data"))
    Manifest(
        schema=SCHEMA_VERSION,
        architecture=variant.architecture,
        weights=WeightsEntry(source=f"synthetic:{gain:g}", sha256=f"{gain:064.1f}"),
        graphs=(GraphEntry(Precision.FP32, 17, "pixels", _OUTPUTS, (), files),),
        golden=FileEntry.of(bundle, "golden.npz"),
    ).write(bundle)


def write_small_checkpoint(folder: Path, seed: int) -> None:
    """Make `folder` with the weights of one narrow block, which exports in seconds."""
    from safetensors.torch import save_file

    from dinov2rt.export.weights.synthetic import synthetic_state_dict

    architecture = replace(
        find_variant("dinov2_vits14").architecture,
        embed_dim=64,
        depth=1,
        num_heads=1,
        hidden_dim=256,
        native_grid=Grid(4, 4),
    )
    folder.mkdir(parents=True)
    save_file(synthetic_state_dict(architecture, seed), folder / "model.safetensors")


def age_cuda_graph(bundle: Path) -> Manifest:
    """Make the graph for ONNX Runtime CUDA as an older version left it; return the manifest.

    It has other content, and its files have names that do not depend on it.
    """
    manifest = Manifest.read(bundle)
    assert manifest.cuda_graph is not None  # noqa: S101
    graph, own, *shared = manifest.cuda_graph.files
    model = onnx.load(bundle / graph.path, load_external_data=False)
    model.doc_string = "older"
    for entry in (each for tensor in model.graph.initializer for each in tensor.external_data):
        if entry.value == own.path:
            entry.value = "cuda.onnx.data"
    onnx.save(model, bundle / "cuda.onnx")
    (bundle / own.path).rename(bundle / "cuda.onnx.data")
    (bundle / graph.path).unlink()
    plain = (FileEntry.of(bundle, name) for name in ("cuda.onnx", "cuda.onnx.data"))
    older = replace(manifest, cuda_graph=replace(manifest.cuda_graph, files=(*plain, *shared)))
    older.write(bundle)
    return older


def _save_graph(file: Path, gain: float, width: int) -> None:
    repeats = width // 3
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "gain"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planar"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["planar"], ["colour"], axes=[2, 3], keepdims=0),
        helper.make_node(
            "AveragePool", ["planar"], ["pool"], kernel_shape=[14] * 2, strides=[14] * 2
        ),
        helper.make_node("Constant", [], ["flat"], value_ints=[0, 3, -1]),
        helper.make_node("Reshape", ["pool", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["colours"], perm=[0, 2, 1]),
        helper.make_node("Constant", [], ["wide"], value_ints=[1, repeats]),
        helper.make_node("Constant", [], ["wider"], value_ints=[1, 1, repeats]),
        helper.make_node("Tile", ["colour", "wide"], ["cls_token"]),
        helper.make_node("Tile", ["colours", "wider"], ["patch_tokens"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", "h", "w", 3])
    outputs = [
        helper.make_tensor_value_info("cls_token", TensorProto.FLOAT, ["b", width]),
        helper.make_tensor_value_info("patch_tokens", TensorProto.FLOAT, ["b", "n", width]),
    ]
    weights = [onnx.numpy_helper.from_array(np.full(3, gain, np.float32), "gain")]
    graph = helper.make_graph(nodes, "colours", [pixels], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(
        model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=0
    )
