"""An int8 bundle of a small model: exported on photographs of its own, loaded, described."""

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino
import pytest
from PIL import Image

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision, QuantizationEntry
from dinov2rt.bundle.variants import Variant, variants
from dinov2rt.cli import main
from dinov2rt.cli.export import _quantized
from dinov2rt.export.crops import PHOTOS
from dinov2rt.export.int8.drawings import drawings
from dinov2rt.export.int8.products import product_names
from dinov2rt.runtime.backends import openvino_int8
from dinov2rt.runtime.backends.openvino import OpenVinoBackend, cannot_run_bf16, cannot_run_int8
from dinov2rt.runtime.backends.openvino_int8 import fastest_rest
from dinov2rt.runtime.model import Model, load

pytestmark = pytest.mark.skipif(cannot_run_int8() is not None, reason="int8 needs VNNI")
needs_bf16 = pytest.mark.skipif(
    cannot_run_bf16() is not None, reason="bfloat16 needs AVX512_BF16 or AMX-BF16"
)

NAMES = [f"{index}.png" for index in range(6)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs: parts of those that ship with the project."""
    folder = tmp_path_factory.mktemp("my photos")
    with Image.open(PHOTOS / "hubble.jpg") as hubble, Image.open(PHOTOS / "coffee.jpg") as coffee:
        for index, name in enumerate(NAMES):
            photo = (hubble, coffee)[index % 2]
            photo.crop((50 * index, 0, 50 * index + 300, 300)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def exported(
    toy_variant: Callable[[str], Variant],
    photos: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """The bundle, and what the export printed."""
    toy = dataclasses.replace(toy_variant("dinov2_vits14"), name="toy")
    out = tmp_path_factory.mktemp("int8") / "bundle"
    argv = ["export", "toy", "--weights", "synthetic:0", "--out", out, "--precision", "int8"]
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        patch.setattr("dinov2rt.bundle.variants._TABLE", (*variants(), toy))
        assert main([*map(str, argv), "--calibration", str(photos)]) == 0
    return out, printed.getvalue()


@pytest.fixture(scope="module")
def bundle(exported: tuple[Path, str]) -> Path:
    return exported[0]


def quantization(bundle: Path) -> QuantizationEntry:
    (graph,) = Manifest.read(bundle).graphs
    assert graph.quantization is not None
    return graph.quantization


def computed(model: Model, kind: str) -> set[str]:
    """Precisions in which nodes of `kind` compute."""
    backend = model._choice.backend
    assert isinstance(backend, OpenVinoBackend)
    assert backend._any_shape is not None
    compiled: Any = backend._any_shape.request.get_compiled_model()
    found = set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {name: str(value.value) for name, value in node.get_rt_info().items()}
        if facts["layerType"] == kind:
            found.add(facts["runtimePrecision"])
    return found


PRODUCTS, ATTENTION = "FullyConnected", "Subgraph"


def test_the_manifest_says_on_which_photographs_it_was_measured(bundle: Path, photos: Path) -> None:
    calibration = quantization(bundle).calibration
    assert calibration is not None
    assert (calibration.paths, calibration.images) == ((str(photos),), len(NAMES))
    listed = "".join(f"{name}\n" for name in NAMES)
    assert calibration.names_sha256 == hashlib.sha256(listed.encode()).hexdigest()
    crops = (calibration.rounded_on, calibration.searched_on, calibration.checked_on)
    assert crops == (80, 116, 116)
    assert calibration.drawings == len(list(drawings(ImageSize(14, 14))))


def test_the_export_prints_it(exported: tuple[Path, str], photos: Path) -> None:
    _, printed = exported
    assert f"int8: measured on 6 photographs ({photos}; names have SHA-256 " in printed
    assert (
        "rounded for 80 crops and 25 drawings, searched on 116 crops, checked on 116 others"
        in printed
    )
    assert "int8: on 24 drawings, which need not be within the limits, the cosines are " in printed


@needs_bf16
def test_the_rest_is_bfloat16_where_it_was_measured_so(bundle: Path) -> None:
    assert quantization(bundle).rest is Precision.BF16
    assert len(quantization(bundle).static) > 4
    with load(bundle, precision="int8") as model:
        assert "cpu, int8 products, the rest in bf16" in model.describe()
        assert computed(model, PRODUCTS) == {"i8", "u8"}  # static activations
        assert computed(model, ATTENTION) == {"bf16"}
        assert model.verify()


@needs_bf16
def test_a_bundle_that_was_not_measured_with_it_stays_float32_and_says_so(
    bundle: Path, copy_of: Callable[[Path], Path]
) -> None:
    older = copy_of(bundle)
    manifest = Manifest.read(older)
    (graph,) = manifest.graphs
    entry = dataclasses.replace(quantization(bundle), rest=Precision.FP32)
    changed = dataclasses.replace(graph, quantization=entry)
    dataclasses.replace(manifest, graphs=(changed,)).write(older)
    with load(older, precision="int8") as model:
        assert computed(model, ATTENTION) == {"f32"}
        assert "the rest in fp32 (bf16 was not measured at the export)" in model.describe()


@pytest.mark.parametrize(
    ("is_static", "rounds_dynamically", "is_said"),
    [(False, False, True), (True, False, False), (False, True, False)],
)
def test_dynamic_activations_on_amx_are_slower_than_bf16_and_it_is_said(
    bundle: Path,
    copy_of: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_static: bool,
    rounds_dynamically: bool,
    is_said: bool,
) -> None:
    other = copy_of(bundle)
    manifest = Manifest.read(other)
    (graph,) = manifest.graphs
    names = product_names(manifest.architecture) if is_static else ()
    entry = dataclasses.replace(quantization(bundle), static=names, float32=())
    changed = dataclasses.replace(graph, quantization=entry)
    dataclasses.replace(manifest, graphs=(changed,)).write(other)
    monkeypatch.setattr(openvino_int8, "rounds_dynamically", lambda: rounds_dynamically)
    with load(other, precision="int8") as model:
        assert ('; precision="bf16" is faster on this CPU' in model.describe()) is is_said


def test_a_graph_that_is_mostly_not_int8_says_so(
    bundle: Path, copy_of: Callable[[Path], Path]
) -> None:
    other = copy_of(bundle)
    manifest = Manifest.read(other)
    (graph,) = manifest.graphs
    *most, last = product_names(manifest.architecture)
    entry = dataclasses.replace(quantization(bundle), static=(last,), float32=tuple(most))
    changed = dataclasses.replace(graph, quantization=entry)
    dataclasses.replace(manifest, graphs=(changed,)).write(other)
    said = f"; {len(most)} of {len(most) + 1} products are in {fastest_rest()}, so int8 gains"
    with load(other, precision="int8") as model:
        assert said in model.describe()
    lines = _quantized(entry, manifest.architecture)
    assert f"int8: most products stayed {entry.rest}, so int8 gains little over it" in lines


@pytest.mark.parametrize(("drawn", "is_said"), [(0, True), (25, False)])
def test_ranges_of_photographs_alone_are_mentioned(
    bundle: Path, copy_of: Callable[[Path], Path], *, drawn: int, is_said: bool
) -> None:
    older = copy_of(bundle)
    manifest = Manifest.read(older)
    (graph,) = manifest.graphs
    measured = quantization(bundle).calibration
    assert measured is not None
    entry = dataclasses.replace(
        quantization(bundle),
        static=product_names(manifest.architecture),
        calibration=dataclasses.replace(measured, drawings=drawn),
    )
    changed = dataclasses.replace(graph, quantization=entry)
    dataclasses.replace(manifest, graphs=(changed,)).write(older)
    with load(older, precision="int8") as model:
        assert ("; text, drawings and plain colours are less" in model.describe()) is is_said


def test_the_export_measures_drawings(bundle: Path) -> None:
    measured = quantization(bundle)
    assert measured.drawn_cls_cosine_min is not None
    assert measured.drawn_token_cosine_p1 is not None
    assert 0.9 < measured.drawn_cls_cosine_min < 1
    assert 0.9 < measured.drawn_token_cosine_p1 < 1


def test_without_bfloat16_the_rest_is_float32(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_int8, "cannot_run_bf16", lambda: "it has none")
    with load(bundle, precision="int8") as model:
        here = f"int8 on openvino {openvino.__version__.partition('-')[0]}, cpu, int8 products, "
        assert model.describe().splitlines()[0].endswith(f"{here}the rest in fp32")
        assert computed(model, PRODUCTS) == {"i8", "u8", "f32"}  # f32: the position table
        assert model.verify()
