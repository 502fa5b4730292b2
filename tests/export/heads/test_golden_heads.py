"""The official heads' own outputs, through the exported bundle and the runtime."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.golden import GoldenCase
from dinov2rt.bundle.heads import OFFICIAL_HEADS
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import NO_EXTRAS, InputFormat
from dinov2rt.bundle.tasks.accuracy import margins_of
from dinov2rt.bundle.tasks.bilinear import resize_bilinear
from dinov2rt.bundle.variants import find_variant
from dinov2rt.export.eager_check import heads_of, weights_of
from dinov2rt.export.exporter import ExportOptions, export_bundle
from dinov2rt.export.golden import eager_case
from dinov2rt.export.heads.checkpoint import HeadSource
from dinov2rt.export.model import load_eager
from dinov2rt.runtime.model import Model, load
from dinov2rt.runtime.predictions import Classification, Depth, Predictions, Segmentation

GOLDEN = Path(__file__).parents[2] / "golden_heads"
LIMIT = 1e-5
MARGIN = 1e-4
BACKENDS = ("onnxruntime", "openvino")
DEFAULT_CASES = ("chelsea_98x126", "coffee_231x345")


def golden(variant: str, *cases: str) -> list[str]:
    names = [file.stem for file in sorted(GOLDEN.glob(f"{variant}__*.npz"))]
    plain = [name for name in names if name.count("__") == 2 and "__layers__" not in name]
    return [name for name in plain if not cases or name.rpartition("__")[2] in cases]


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def check(answers: Predictions, name: str) -> None:
    with np.load(GOLDEN / f"{name}.npz") as archive:
        want = dict(archive)
    meta = json.loads(str(want["meta"]))
    got = answers[meta["head"].replace("_", "-")]
    if isinstance(got, Classification):
        assert relative_l2(got.logits, want["logits"]) < LIMIT
    elif isinstance(got, Depth):
        assert got.metres.shape == want["depth"].shape
        assert relative_l2(got.metres, want["depth"]) < LIMIT
        assert list(got.depth_range) == meta["depth_range"]
    else:
        check_segmentation(got, want)


def check_segmentation(got: Any, want: dict[str, np.ndarray]) -> None:
    assert isinstance(got, Segmentation)
    assert relative_l2(got.scores, want["logits_lowres"]) < LIMIT
    assert got.classes.dtype == np.uint8
    assert got.classes.shape == want["class_map"].shape
    off = got.classes != want["class_map"]
    margins = margins_of(resize_bilinear(want["logits_lowres"], off.shape[1:]), axis=1)
    assert not np.any(off & (margins > MARGIN))
    assert off.mean() < 1e-3


def answers_of(model: Model, case: str, heads: list[str] | None = None) -> Predictions:
    return model.predict(np.load(GOLDEN / "inputs.npz")[case], scores=True, heads=heads)


def is_dense(name: str) -> bool:
    return OFFICIAL_HEADS[name.split("__")[1].replace("_", "-")].is_dense


@pytest.fixture(scope="module", params=BACKENDS)
def small(request: pytest.FixtureRequest, bundle_heads: Path) -> Iterator[Model]:
    with load(bundle_heads, device="cpu", backend=request.param) as model:
        yield model


def test_every_head_is_golden_in_the_default_tests() -> None:
    names = golden("dinov2_vits14", *DEFAULT_CASES)
    assert {name.split("__")[1].replace("_", "-") for name in names} == set(OFFICIAL_HEADS)


def test_the_bundle_reproduces_the_official_outputs(small: Model) -> None:
    answers = answers_of(small, "chelsea_98x126")
    for name in golden("dinov2_vits14", "chelsea_98x126"):
        check(answers, name)


def test_dense_heads_pad_as_the_official_code_does(small: Model) -> None:
    """231 × 345: seventeen rows and twenty-five columns. Classifiers would take another pass."""
    names = [name for name in golden("dinov2_vits14", "coffee_231x345") if is_dense(name)]
    heads = [name.split("__")[1].replace("_", "-") for name in names]
    answers = answers_of(small, "coffee_231x345", heads)
    for name in names:
        check(answers, name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_classifiers_crop_where_dense_heads_pad(backend: str, bundle_classifiers: Path) -> None:
    names = [name for name in golden("dinov2_vits14", "coffee_231x345") if not is_dense(name)]
    assert len(names) == 2
    with load(bundle_classifiers, device="cpu", backend=backend) as model:
        answers = answers_of(model, "coffee_231x345")
    for name in names:
        check(answers, name)


def exported(variant: str, folder: Path) -> Path:
    has_registers = variant.endswith("_reg")
    names = [name for name, spec in OFFICIAL_HEADS.items() if not (spec.is_dense and has_registers)]
    heads = tuple(HeadSource(name, "synthetic:0") for name in names)
    options = ExportOptions(precisions=(Precision.FP32,), heads=heads)
    export_bundle(find_variant(variant), "synthetic:0", folder / variant, options)
    return folder / variant


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def bundle(variant: str) -> Path:
        if variant not in made:
            made[variant] = exported(variant, tmp_path_factory.mktemp(variant))
        return made[variant]

    return bundle


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "variant", ["dinov2_vits14", "dinov2_vits14_reg", "dinov2_vitb14", "dinov2_vitb14_reg"]
)
def test_all_goldens_with_a_whole_export(
    variant: str, backend: str, large: Callable[[str], Path]
) -> None:
    with load(large(variant), device="cpu", backend=backend) as model:
        assert model.verify()
        for case in sorted({name.rpartition("__")[2] for name in golden(variant)}):
            answers = answers_of(model, case)
            for name in golden(variant, case):
                check(answers, name)


SIZES = ((14, 14), (98, 126), (231, 345), (518, 518), (630, 476))
ONE_OF_EACH = ("linear", "linear4", "nyu-linear4", "kitti-dpt", "ade20k-linear", "voc2012-ms")


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[GoldenCase]]:
    """ViT-S with a head of each kind, and what the eager model makes of every size and batch."""
    bundle = tmp_path_factory.mktemp("bundles") / "one-of-each"
    heads = tuple(HeadSource(name, "synthetic:0") for name in ONE_OF_EACH)
    options = ExportOptions(precisions=(Precision.FP32,), heads=heads)
    export_bundle(find_variant("dinov2_vits14"), "synthetic:0", bundle, options)
    manifest = Manifest.read(bundle)
    eager = load_eager(find_variant("dinov2_vits14"), weights_of(manifest).state_dict)
    eager.task_heads = heads_of(manifest)
    rng = np.random.default_rng(0)
    shapes = [(batch, *size) for size in SIZES for batch in (1, 2, 3)]
    return bundle, [
        eager_case(
            eager,
            str(shape),
            rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
            InputFormat.PIXELS,
            NO_EXTRAS,
        )
        for shape in shapes
    ]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_bundle_serves_every_size_and_batch(
    backend: str, one_of_each: tuple[Path, list[GoldenCase]]
) -> None:
    bundle, cases = one_of_each
    with load(bundle, device="cpu", backend=backend) as model:
        report = model.verify(cases)
    assert report, report
    errors = [task.relative_l2 for task in report.tasks if task.relative_l2 is not None]
    assert len(errors) == len(cases) * len(ONE_OF_EACH)
    assert max(errors) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dinov2_vitl14", "dinov2_vitg14"])
def test_heads_of_large_variants_are_their_eager_heads(variant: str, tmp_path: Path) -> None:
    names = ("linear4", "nyu-linear4", "nyu-dpt", "ade20k-ms")
    heads = tuple(HeadSource(name, "synthetic:0") for name in names)
    options = ExportOptions(precisions=(Precision.FP32,), heads=heads)
    with pytest.MonkeyPatch.context() as patch:
        # One size, padded to six rows and three columns of patches: both parities.
        cases = {ImageSize(73, 31): ("coffee.jpg",)}
        patch.setattr("dinov2rt.export.golden._photos_by_size", lambda _: cases)
        export_bundle(find_variant(variant), "synthetic:0", tmp_path / variant, options)
    with load(tmp_path / variant, device="cpu", backend="onnxruntime") as model:
        report = model.verify()
    assert report, report
    assert len(report.tasks) == 5  # class maps and their scores
