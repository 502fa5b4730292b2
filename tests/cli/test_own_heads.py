"""From labelled photographs to a bundle that answers: run, train-head, export, predict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.small_cases import small_golden_cases

from dinov2rt.bundle.tasks.bilinear import resize_bilinear
from dinov2rt.bundle.tasks.classes import class_table, spread_colours
from dinov2rt.bundle.tasks.classifier_file import read_classifier
from dinov2rt.bundle.tasks.segmenter_file import read_segmenter
from dinov2rt.cli import main
from dinov2rt.extraction.parquet import read_rows
from dinov2rt.runtime.model import load

SKY, ROAD = 0, 3
IMAGES = 10
GREEN, PINK = (0, 200, 0), (250, 100, 150)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `day` and `night`: bright and dark pictures of a sky above a road."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        name = "day" if index % 2 else "night"
        (folder / name).mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 60, (60, 73, 3))
        scene = noise + (120 if index % 2 else 10)
        scene[horizon(index) :, :, 0] += 60  # a red road
        Image.fromarray(scene.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


def horizon(index: int) -> int:
    return 17 + 14 * (index % 3)


@pytest.fixture(scope="module")
def masks(photos: Path) -> Path:
    """A mask of each photograph with a palette; a corner of each has no class."""
    folder = photos.parent / "masks"
    folder.mkdir()
    palette = np.zeros((256, 3), np.uint8)
    palette[SKY], palette[ROAD] = GREEN, PINK
    for photo in photos.rglob("*.png"):
        mask = np.full((60, 73), SKY, np.uint8)
        mask[horizon(int(photo.stem)) :] = ROAD
        mask[:10, :10] = 255
        image = Image.fromarray(mask)
        image.putpalette(palette.tobytes())
        image.save(folder / photo.name)
    return folder


@pytest.fixture(scope="module")
def features(bundle_heads: Path, photos: Path) -> Path:
    out = photos.parent / "features.parquet"
    options = ("--snap", "pad", "--patch-tokens", "--layer-tokens", "--backend", "onnxruntime")
    assert main(["run", str(bundle_heads), str(photos), "--out", str(out), *options]) == 0
    return out


def train(features: Path, out: Path, *options: object) -> None:
    argv = ["train-head", "--features", str(features), "--out", str(out), *map(str, options)]
    assert main(argv) == 0


@pytest.fixture(scope="module")
def bundle(features: Path, masks: Path) -> Path:
    """A bundle with a classifier of four layers and a segmentation head."""
    folder = features.parent
    names = folder / "names.txt"
    names.write_text("sky\ntree\nhouse\nroad\n")
    train(features, folder / "c.npz", "--labels", "folder", "--tokens", "layers+mean")
    train(features, folder / "s.npz", "--masks", masks, "--class-names", names)
    heads = f"classifier={folder / 'c.npz'},segmenter={folder / 's.npz'}"
    argv = ["export", "dinov2_vits14", "--weights", "synthetic:0", "--head", heads]
    with small_golden_cases():
        assert main([*argv, "--precision", "fp32", "--out", str(folder / "bundle")]) == 0
    return folder / "bundle"


def test_the_held_out_images_are_measured_in_pixels(
    features: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(features, tmp_path / "s.npz", "--masks", masks, "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["classes"] == [str(SKY), str(ROAD)]
    assert (document["images"], document["synthetic_weights"]) == (IMAGES, True)
    # 5x6 patches after padding; the padded ones and the corner may be without a class
    assert 20 * IMAGES <= document["patches"] <= 30 * IMAGES
    held_out = document["held_out_accuracy"]
    assert held_out["pixels"] > 0.8
    assert set(held_out["ious"]) == {str(SKY), str(ROAD)}
    assert held_out["mean_iou"] == pytest.approx(np.mean([*held_out["ious"].values()]))


def test_the_exported_heads_answer_as_they_were_fitted(
    bundle: Path, features: Path, photos: Path
) -> None:
    rows = [row for part in features.glob("*.parquet") for row in read_rows(part)]
    classifier = read_classifier(features.parent / "c.npz")
    segmenter = read_segmenter(features.parent / "s.npz")
    assert (classifier.num_layers, classifier.class_names) == (4, ("day", "night"))
    with load(bundle, device="cpu", backend="onnxruntime") as model:
        assert model.verify()
        for row in rows[:3]:
            pixels = np.asarray(Image.open(photos / row.key))
            answers: Any = model.predict(pixels, snap="pad", scores=True)
            assert row.layer_cls_tokens is not None
            assert row.patch_tokens is not None
            read = np.concatenate([row.layer_cls_tokens.ravel(), row.patch_mean])
            logits = classifier.weight @ read + classifier.bias
            terms = np.abs(classifier.weight) @ np.abs(read)
            assert error(answers["classifier"].logits[0], logits, terms) < 1e-5
            scores = (row.patch_tokens @ segmenter.weight.T + segmenter.bias).T
            planes = scores.reshape(-1, row.grid.rows, row.grid.cols)
            segments = answers["segmenter"]
            terms = np.abs(segmenter.weight) @ np.abs(row.patch_tokens.T)
            assert error(segments.scores[0], planes, terms.reshape(planes.shape)) < 1e-5
            full = resize_bilinear(np.ascontiguousarray(planes), (60, 73))
            clear = np.abs(full[0] - full[1]) > 1e-3
            assert (segments.classes[0] == full.argmax(axis=0))[clear].all()


def error(got: np.ndarray, want: np.ndarray, terms: np.ndarray) -> float:
    """Beside the sizes of the terms that are summed; they cancel in a head of so few images."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(terms))


def test_predict_shows_both(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path), "--backend", "onnxruntime", "--pictures", "--json")
    assert main(["predict", str(bundle), str(photos / "day"), *out]) == 0
    for record in json.loads(capsys.readouterr().out)["predictions"]:
        heads = record["heads"]
        assert heads["classifier"]["classes"][0]["name"] == "day"
        assert {each["name"] for each in heads["segmenter"]["classes"]} == {"sky", "road"}
        with Image.open(tmp_path / heads["segmenter"]["file"]) as image:
            colours = {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3)}
        assert colours == {GREEN, PINK}
        picture = tmp_path / "pictures" / "segmenter" / f"{record['image']}.png"
        assert picture.is_file()


def test_a_mask_that_does_not_fit_is_one_line(
    features: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(masks.glob("*.png"))
    for file in files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    first = tmp_path / files[0].name
    argv = ["train-head", "--features", str(features), "--out", str(tmp_path / "s.npz")]
    for spoil, message in (
        (lambda: Image.new("L", (73, 61)).save(first), "a mask has the size of its photograph"),
        (lambda: Image.new("RGB", (73, 60)).save(first), "holds RGB and no class indices"),
        (lambda: first.write_bytes(b"no image"), "cannot be read as PNG"),
        (first.unlink, "has no mask"),
    ):
        spoil()
        assert main([*argv, "--masks", str(tmp_path)]) == 2
        complaint = capsys.readouterr().err
        assert message in complaint
        assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --labels for a classifier, or --masks"),
        (("--masks", "m", "--tokens", "cls"), "--tokens is for --labels"),
        (("--labels", "folder", "--class-names", "n"), "--class-names is for --masks"),
    ],
)
def test_options_of_the_other_kind_are_refused(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train-head", "--features", "f", "--out", "o.npz", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_heads_are_fitted_on_a_backbone_that_is_no_variant(
    bundle_unusual: Path,
    photos: Path,
    masks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Patches of 16 pixels and eight registers: 60x73 pixels are 4x5 patches."""
    rows, heads = tmp_path / "f.parquet", (tmp_path / "c.npz", tmp_path / "s.npz")
    options = ("--snap", "pad", "--patch-tokens", "--backend", "onnxruntime")
    assert main(["run", str(bundle_unusual), str(photos), "--out", str(rows), *options]) == 0
    train(rows, heads[0], "--labels", "folder")
    train(rows, heads[1], "--masks", masks, "--json")
    said = capsys.readouterr().out
    assert "export it with: dinov2rt export auto --weights W --head classifier=" in said
    assert json.loads(said[said.index("{") :])["patches"] <= 20 * IMAGES
    weights = bundle_unusual.parent / "weights.pth"
    sources = f"classifier={heads[0]},segmenter={heads[1]}"
    facts = "--num-heads 3 --grid 10x16 --antialias on --offset 0 --mean .5,.5,.5 --std .25,.25,.25"
    argv = ["export", "auto", "--weights", str(weights), *facts.split(), "--head", sources]
    assert main([*argv, "--precision", "fp32", "--out", str(tmp_path / "bundle")]) == 0
    segmenter = read_segmenter(heads[1])
    (row, *_) = (row for part in rows.glob("*.parquet") for row in read_rows(part))
    with load(tmp_path / "bundle", device="cpu", backend="onnxruntime") as model:
        pixels = np.asarray(Image.open(photos / row.key))
        answer: Any = model.predict(pixels, heads="segmenter", scores=True)
        assert answer.classes.shape == (1, 60, 73)
        assert row.patch_tokens is not None
        planes = (row.patch_tokens @ segmenter.weight.T + segmenter.bias).T.reshape(-1, 4, 5)
        terms = np.abs(segmenter.weight) @ np.abs(row.patch_tokens.T)
        assert error(answer.scores[0], planes, terms.reshape(planes.shape)) < 1e-5
        top = model.predict(pixels, heads="classifier", snap="pad").top(1)
        assert top[0][0].name == Path(row.key).parent.name


def test_layer_tokens_need_layers(
    bundle_s: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "f.parquet"), "--layer-tokens")
    assert main(["run", str(bundle_s), str(photos), *out]) == 2
    assert "export it with --layers, such as --layers 8,9,10,11" in capsys.readouterr().err


def test_colours_of_own_classes_follow_the_rule_of_voc2012() -> None:
    palette = class_table("voc2012").palette
    assert palette is not None
    assert spread_colours(range(21)) == tuple(map(tuple, palette.tolist()))
