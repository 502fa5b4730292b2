"""`dinov2rt search` on real images and on invented features."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinov2rt.cli import main
from dinov2rt.export.crops import PHOTOS
from dinov2rt.extraction.reader import read_features

NAMES = ("astronaut", "chelsea", "coffee", "hubble")
CROPS = 4

Search = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few crops of 56 × 56 pixels from each of the photographs."""
    folder = tmp_path_factory.mktemp("crops")
    for name in NAMES:
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            for index in range(CROPS):
                left = 100 + 20 * index
                photo.resize((400, 300)).crop((left, 100, left + 56, 156)).save(
                    folder / f"{name}{index}.png"
                )
    return folder


@pytest.fixture(scope="module")
def features(bundle_s: Path, crops: Path) -> Path:
    out = crops.parent / "f.parquet"
    arguments = ["--out", str(out), "--device", "cpu", "--precision", "fp32"]
    assert main(["run", str(bundle_s), str(crops), *arguments]) == 0
    return out


@pytest.fixture
def search(capsys: pytest.CaptureFixture[str]) -> Search:
    """The command with --json: its status, its document, and what it complained of."""

    def call(*arguments: object) -> tuple[int, Any, str]:
        status = main(["search", *map(str, arguments), "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out), captured.err

    return call


def near(document: Any, query: int = 0) -> list[str]:
    return [Path(one["key"]).name for one in document["queries"][query]["neighbours"]]


def test_neighbours_are_the_images_of_largest_cosine(search: Search, features: Path) -> None:
    table = read_features(features, ["key", "cls_token"])
    keys = table["key"].to_pylist()
    vectors = np.array(table["cls_token"].to_pylist())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    status, document, complaints = search(*keys, "--features", features, "-k", 5)
    assert (status, complaints, document["images"]) == (0, "", CROPS * len(NAMES))
    assert document["synthetic_weights"]
    for query, row in enumerate(cosines):
        expected = [at for at in np.argsort(-row) if at != query][:5]
        found = document["queries"][query]["neighbours"]
        assert [one["key"] for one in found] == [keys[at] for at in expected]
        np.testing.assert_allclose([one["score"] for one in found], row[expected], atol=1e-6)


def test_synthetic_weights_still_see_that_stars_are_stars(
    search: Search, crops: Path, features: Path
) -> None:
    _, document, _ = search(crops / "hubble0.png", "--features", features, "-k", CROPS - 1)
    assert sorted(near(document)) == [f"hubble{at}.png" for at in range(1, CROPS)]


def test_an_image_is_found_however_it_is_named(
    search: Search, crops: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, document, _ = search("coffee0.png", "--features", features, "-k", 3)
    wanted = document["queries"][0]["neighbours"]
    linked = tmp_path / "linked"
    linked.symlink_to(crops)
    for place, name in (
        (crops.parent, f"{crops.name}/coffee0.png"),
        (crops.parent, crops / "coffee0.png"),
        (crops.parent, linked / "coffee0.png"),
        (crops, "./coffee0.png"),
        (crops, f"../{crops.name}/coffee0.png"),
        (crops.parent, f"no/longer/{crops.name}/coffee0.png"),
    ):
        monkeypatch.chdir(place)
        status, document, _ = search(name, "--features", features, "-k", 3)
        assert status == 0, name
        assert document["queries"][0]["neighbours"] == wanted


def test_a_folder_that_was_moved_is_found_again(
    search: Search,
    bundle_s: Path,
    crops: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, after, out = tmp_path / "before", tmp_path / "after", tmp_path / "f.parquet"
    before.mkdir()
    for name in ("coffee0", "coffee1", "hubble0"):
        shutil.copy(crops / f"{name}.png", before)
    assert main(["run", str(bundle_s), str(before), "--out", str(out), "--device", "cpu"]) == 0
    capsys.readouterr()
    before.rename(after)
    picture = tmp_path / "p.png"
    arguments = ("--features", out, "--root", after, "--picture", picture)
    status, document, complaints = search(after / "coffee0.png", *arguments)
    assert (status, complaints) == (0, "")  # without a bundle, and every tile is there
    assert sorted(near(document)) == ["coffee1.png", "hubble0.png"]
    # Where it was is no place of another image, so the old name still says which it was.
    _, document, _ = search(before / "coffee0.png", "--features", out)
    assert sorted(near(document)) == ["coffee1.png", "hubble0.png"]


def test_another_image_of_the_same_name_is_not_taken_for_it(
    search: Search, features: Path, tmp_path: Path, crops: Path
) -> None:
    other = tmp_path / "coffee0.png"
    shutil.copy(crops / "hubble0.png", other)
    status, document, _ = search(other, "--features", features)
    assert status == 2
    assert "is not in the features, so it has to be computed" in document["error"]["message"]


@pytest.mark.parametrize("token", ["cls", "patch-mean"])
def test_an_image_file_is_computed_as_the_features_were(
    search: Search, bundle_s: Path, crops: Path, features: Path, tmp_path: Path, token: str
) -> None:
    photo = tmp_path / "new.png"
    shutil.copy(crops / "coffee2.png", photo)
    arguments = ("--features", features, "--bundle", bundle_s, "-k", 2, "--token", token)
    status, document, _ = search(photo, crops / "coffee2.png", *arguments)
    assert status == 0
    first = document["queries"][0]["neighbours"][0]
    # The same pixels; batches of other sizes round otherwise.
    assert Path(first["key"]).name == "coffee2.png"
    assert first["score"] == pytest.approx(1.0, abs=1e-5)
    # A query that is one of the features is not its own neighbour.
    assert near(document, 0)[1] == near(document, 1)[0]


def test_a_picture_shows_queries_and_neighbours(
    search: Search, crops: Path, features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.png"
    keys = (crops / "coffee0.png", crops / "hubble0.png")
    arguments = ("--features", features, "-k", 3, "--picture", out)
    status, document, complaints = search(*keys, *arguments)
    assert (status, document["picture"], complaints) == (0, str(out), "")
    with Image.open(out) as picture:
        assert picture.size == (4 * 232, 2 * 280)


def test_a_picture_says_how_many_images_are_gone(
    search: Search, write_features: Callable[..., Path], tmp_path: Path
) -> None:
    tokens = np.random.default_rng(0).normal(size=(3, 384)).astype(np.float32)
    folder = write_features("f", ["a.jpg", "b.jpg", "c.jpg"], tokens)
    out = tmp_path / "p.png"
    status, _, complaints = search("b.jpg", "--features", folder, "--picture", out)
    assert (status, out.exists()) == (0, True)
    assert complaints == (
        "dinov2rt: 3 images cannot be opened any more; they are grey in the picture\n"
    )


def test_people_get_a_table_and_the_meaning_of_synthetic_weights(
    crops: Path,
    features: Path,
    write_features: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = str(crops / "coffee0.png")
    assert main(["search", key, "--features", str(features), "-k", "1"]) == 0
    header, row, note = capsys.readouterr().out.splitlines()
    assert header.split() == ["query", "rank", "cosine", "key"]
    assert re.fullmatch(r"\S+coffee0\.png +1 +0\.\d{4} +coffee\d\.png", row)
    assert "synthetic: near means alike in colour and texture" in note

    real = write_features("f", ["a", "b"], np.eye(2, 384, dtype=np.float32))
    assert main(["search", "a", "--features", str(real)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "1", "0.0000", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.png"], "x.png is neither an image file nor one of these features; their first"),
        (["PHOTO"], "is not in the features, so it has to be computed; give --bundle BUNDLE"),
        (
            ["PHOTO", "--bundle", "OTHER"],
            "the bundle has variant dinov2_vits14_reg, but the features have dinov2_vits14; they",
        ),
        (
            ["PHOTO", "--bundle", "BUNDLE", "--precision", "fp16"],
            "the bundle has precision fp16, but the features have fp32; they cannot be compared",
        ),
        (["TEXT", "--bundle", "BUNDLE"], "text.png is not an image of a format that is opened"),
        (["KEY", "-k", "0"], "0 neighbours; allowed is a whole number from 1"),
        (
            ["KEY", "--token", "register"],
            'unknown token \'register\'; allowed are "cls", "patch-mean"',
        ),
        (["KEY", "--picture", "p.jpg"], "p.jpg has the suffix '.jpg'; allowed: .png"),
        (["KEY", "--picture", "no/p.png"], "no is not a folder to write p.png in"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    bundle_s: Path,
    bundle_s_reg: Path,
    crops: Path,
    features: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    text = tmp_path / "text.png"
    text.write_text("plain text")
    places = {
        "PHOTO": PHOTOS / "coffee.jpg",
        "TEXT": text,
        "KEY": crops / "coffee0.png",
        "BUNDLE": bundle_s,
        "OTHER": bundle_s_reg,
    }
    filled = [str(places.get(argument, argument)) for argument in arguments]
    status = main(["search", *filled, "--features", str(features)])
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    assert line.startswith("dinov2rt: error: ")
    assert message in line


def test_other_weights_of_the_same_variant_are_refused(
    search: Search, bundle_s: Path, write_features: Callable[..., Path]
) -> None:
    folder = write_features("f", ["a"], np.ones((1, 384), np.float32))
    photo = PHOTOS / "coffee.jpg"
    status, document, _ = search(photo, "--features", folder, "--bundle", bundle_s)
    assert status == 2
    message = document["error"]["message"]
    assert re.match(
        r"the bundle has weights_sha256 [0-9a-f]{64}, but the features have 0{64}", message
    )


ODD_NAMES = ("caf\udce9.png", "a\x1b[2J.png", "b.png")


@pytest.fixture(scope="module")
def odd_features(
    bundle_s: Path, crops: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A folder with bytes that are not UTF-8 in its name and in an image's, and its features."""
    folder = tmp_path_factory.mktemp("odd") / "na\udcefve"
    folder.mkdir()
    for name, crop in zip(ODD_NAMES, ("coffee0", "coffee1", "hubble0"), strict=True):
        shutil.copy(crops / f"{crop}.png", folder / name)
    out = folder.parent / "f.parquet"
    assert main(["run", str(bundle_s), str(folder), "--out", str(out), "--device", "cpu"]) == 0
    return folder, out


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_image_is_found_by_a_name_that_is_not_unicode(
    name: str, odd_features: tuple[Path, Path], search: Search, tmp_path: Path
) -> None:
    folder, features = odd_features
    picture = tmp_path / "p.png"
    status, document, complaints = search(
        folder / name, "--features", features, "-k", 2, "--picture", picture
    )
    assert (status, complaints) == (0, "")  # the picture shows every file
    others = {other.replace("\udce9", "\\udce9") for other in ODD_NAMES if other != name}
    assert set(near(document)) == others


def test_names_with_escape_sequences_are_printed_escaped(
    odd_features: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, features = odd_features
    assert main(["search", str(folder / "b.png"), "--features", str(features), "-k", "2"]) == 0
    shown = capsys.readouterr().out
    assert "caf\\udce9.png" in shown
    assert "a\\x1b[2J.png" in shown
    assert "\x1b" not in shown
