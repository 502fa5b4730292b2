"""A new user's first hour, against a built wheel in a fresh environment with an empty home.

It follows the README: install, ask, run on photographs as phones make them, repair, search, move,
call from Python, build, report. `test_pages_run.py` runs the blocks of the pages themselves.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "export/photos"
EXTRAS = "openvino,image,parquet,search"

pytestmark = [pytest.mark.slow, pytest.mark.network]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel, some extras, and no torch."""
    place = tmp_path_factory.mktemp("fresh")
    sources = place / "sources"
    shutil.copytree(
        ROOT,
        sources,
        symlinks=True,
        ignore=shutil.ignore_patterns(
            ".git", ".venv*", "tests", "artifacts", "__pycache__", ".*cache*"
        ),
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(place), str(sources)], check=True
    )
    (wheel,) = place.glob("dinov2rt-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    own = [str(place / "venv/bin/python"), *pip[1:]]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*own, "install", *constraints, f"{wheel}[{EXTRAS}]"], check=True)
    return place / "venv/bin"


def install(fresh: Path, *packages: str) -> None:
    """Packages of another extra, as a message of dinov2rt would ask for them."""
    program = [str(fresh / "python"), "-m", "pip", "install", "--quiet"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*program, *constraints, *packages], check=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, bundle_s_reg: Path) -> Path:
    """Where the user works: an exported bundle, and photographs as phones make them."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "artifacts").mkdir()
    shutil.copytree(bundle_s_reg, folder / "artifacts/dinov2_vits14_reg")
    photos = folder / "photos/coffee"
    photos.mkdir(parents=True)
    for index in range(3):
        with Image.open(PHOTOS / "coffee.jpg") as photo:
            photo.resize((230 + 30 * index, 180)).save(photos / f"coffee_{index}.jpg")
    with Image.open(PHOTOS / "astronaut.jpg") as photo:
        photo.resize((4000, 3000)).save(photos / "phone.jpg")
    for name in ("photo", "a", "b"):
        shutil.copy(photos / "coffee_0.jpg", folder / f"{name}.jpg")
    return folder


@pytest.fixture(scope="module")
def dinov2rt(fresh: Path, home: Path) -> Command:
    def call(*arguments: str, program: str = "dinov2rt") -> tuple[int, str, str]:
        environment = {"PATH": f"{fresh}:/usr/bin:/bin", "HOME": str(home)}
        environment |= {key: os.environ[key] for key in ("LANG",) if key in os.environ}
        done = subprocess.run(
            [str(fresh / program), *arguments],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return call


BUNDLE = "artifacts/dinov2_vits14_reg"
SMALLER = ("--max-pixels", "200000")  # the same path as with 12 megapixels, in less time


def test_the_first_commands_help(dinov2rt: Command) -> None:
    status, out, _ = dinov2rt()
    assert status == 0
    assert out.startswith("usage: dinov2rt")
    status, out, _ = dinov2rt("doctor")
    assert status == 0
    assert "openvino cpu: runs" in out
    assert re.search(r"torch +missing .*dinov2rt\[export\]", out)
    status, out, _ = dinov2rt("info", BUNDLE)
    assert status == 0
    assert "dinov2_vits14_reg" in out
    assert dinov2rt("verify", BUNDLE)[0] == 0


def test_a_folder_of_photographs_just_works_and_is_taken_up_again(
    dinov2rt: Command, home: Path
) -> None:
    run = ("run", BUNDLE, "photos/", "--out", "features.parquet", *SMALLER)
    torn = home / "photos/coffee/torn.jpg"
    torn.write_bytes((home / "photos/coffee/phone.jpg").read_bytes()[:5000])
    status, out, err = dinov2rt(*run, "--pca", "pca.png")
    assert status == 1
    assert "features.parquet: features of 4 images" in out
    assert "1 image of 3000x4000 was scaled to fit max_pixels 200000" in out
    assert "1 of 5 images failed; see features.parquet/_errors; --retry-failed" in out
    assert "torn.jpg cannot be decoded" in err
    assert (home / "pca.png").is_file()

    status, out, _ = dinov2rt(*run)
    assert status == 1
    assert "nothing was left to do" in out

    shutil.copy(home / "photos/coffee/coffee_0.jpg", torn)
    status, out, _ = dinov2rt(*run)
    assert (status, "features of 5 images" in out) == (0, True)

    status, _, err = dinov2rt(*run, "--snap", "pad")
    assert status == 2
    assert "was begun with snap crop, and this is pad. To go on with it: --snap crop" in err
    torn.unlink()


def test_an_image_is_found_however_it_is_named(dinov2rt: Command, home: Path) -> None:
    names = ["coffee/coffee_0.jpg", "photos/coffee/coffee_0.jpg", "coffee_0.jpg"]
    names.append(str(home / "photos/coffee/coffee_0.jpg"))
    found = []
    for name in names:
        status, out, err = dinov2rt(
            "search", name, "--features", "features.parquet", "-k", "2", "--json"
        )
        assert status == 0, err
        found.append([near["key"] for near in json.loads(out)["queries"][0]["neighbours"]])
    assert all(each == found[0] for each in found)


def test_photographs_of_phones_need_no_option(dinov2rt: Command, home: Path) -> None:
    """Two of 12 megapixels: scaled to the default limit, said once, and noted in their rows."""
    (home / "phone").mkdir()
    for name, sides in (("a", (4000, 3000)), ("b", (3000, 4000))):
        with Image.open(PHOTOS / "astronaut.jpg") as photo:
            photo.resize(sides).save(home / "phone" / f"{name}.jpg")
    status, out, err = dinov2rt("run", BUNDLE, "phone/", "--out", "phone.csv")
    assert (status, "features of 2 images" in out) == (0, True), err
    assert "2 images of 3000x4000 to 4000x3000 were scaled to fit max_pixels 4194304" in out
    header, *rows = (line.split(",") for line in (home / "phone.csv").read_text().splitlines())
    sizes = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(row["scaled_from_height"], row["scaled_from_width"]) for row in sizes] == [
        ("3000", "4000"),
        ("4000", "3000"),
    ]
    patches = [int(row["grid_rows"]) * int(row["grid_cols"]) for row in sizes]
    assert all(0.99 * 2**22 < 14 * 14 * count <= 2**22 for count in patches)
    status, _, err = dinov2rt("run", BUNDLE, "phone/", "--out", "refused.csv", "--no-scale")
    assert status != 0
    assert "more than max_pixels=4194304" in err


def test_a_folder_that_was_moved_is_still_searched(dinov2rt: Command, home: Path) -> None:
    """Keys are relative to the folder, so that another place changes nothing but `--root`."""
    (home / "photos").rename(home / "pictures")
    try:
        for name in ("coffee/coffee_0.jpg", "pictures/coffee/coffee_0.jpg"):
            query = ("search", name, "--features", "features.parquet", "-k", "4", "--json")
            status, out, err = dinov2rt(*query, "--root", "pictures")
            assert status == 0, err
            keys = {near["key"] for near in json.loads(out)["queries"][0]["neighbours"]}
            assert {"coffee/coffee_1.jpg", "coffee/coffee_2.jpg"} <= keys
    finally:
        (home / "pictures").rename(home / "photos")


PROGRAM = """
from pathlib import Path
import numpy as np
from PIL import Image
import dinov2rt

model = dinov2rt.load("artifacts/dinov2_vits14_reg")
path = "photos/coffee/coffee_0.jpg"
encoded = Path(path).read_bytes()
forms = [path, Path(path), encoded, Image.open(path), dinov2rt.load_image(path)]
features = model(forms)
assert len(features) == 5, features
assert all(np.allclose(row, features.cls_token[0], atol=1e-5) for row in features.cls_token)
print(repr(features))
mixed = model([path, "photos/coffee/coffee_1.jpg"])
assert [len(each) for each in mixed] == [1, 1]
stacked = model([path, "photos/coffee/coffee_1.jpg"], preprocess="classification")
assert len(stacked) == 2
paths = sorted(Path("photos/coffee").glob("coffee_*.jpg"))
for pool, width in (("cls", 384), ("patch_mean", 384), ("cls+patch_mean", 768)):
    vectors = model.embed(iter(paths), batch_size=2, pool=pool, normalize=True)
    assert vectors.shape == (3, width)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
report = dinov2rt.extract_features(model, "photos", "public.npz", preprocess="classification")
assert (report.images, report.failed) == (4, 0)
for wrong in (encoded[:9000], "no.jpg", b"x" * 90_000):
    try:
        model(wrong)
    except dinov2rt.InputError as error:
        assert len(str(error)) < 1000, len(str(error))
    else:
        raise AssertionError("it was taken for an image")
try:
    features.layer(3)
except dinov2rt.InputError as error:
    assert "--layers" in str(error)
print(model.describe())
with np.load("public.npz") as arrays:
    assert {"key", "height", "width", "grid_rows", "grid_cols", "cls_token"} <= set(arrays.files)
    assert arrays["register_tokens"].shape == (4, 4, 384)
"""


def test_the_api_takes_what_people_have(dinov2rt: Command, home: Path) -> None:
    (home / "calls.py").write_text(PROGRAM)
    status, out, err = dinov2rt("calls.py", program="python")
    assert status == 0, err
    assert out.startswith("Features(cls_token [5, 384] float32, register_tokens [5, 4, 384]")
    assert "dinov2_vits14_reg fp32 on openvino" in out


def test_small_jobs_have_a_spreadsheet(dinov2rt: Command, home: Path) -> None:
    status, _, err = dinov2rt("run", BUNDLE, "photos/", "--out", "features.csv", *SMALLER)
    assert status == 0, err
    header, *rows = (home / "features.csv").read_text().splitlines()
    assert header.startswith("key,height,width,scaled_from_height")
    assert len(rows) == 4


def test_the_python_lines_of_the_readme_run(fresh: Path, dinov2rt: Command, home: Path) -> None:
    blocks = re.findall(r"(?:^    .*\n|^\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    (code,) = (block for block in blocks if "    import dinov2rt\n" in block)
    lines = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    pixels = "import dinov2rt\npixels = dinov2rt.load_image('photo.jpg')\n"
    (home / "first.py").write_text(f"{pixels}{lines}\nprint(features)\n")
    status, out, err = dinov2rt("first.py", program="python")
    assert status == 0, err
    assert "dinov2_vits14_reg fp32 on openvino" in out
    assert "Features(cls_token [1, 384] float32" in out
    assert fresh.is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "dinov2_vits14"), "pip install 'dinov2rt[export]'"),
        (("bench", BUNDLE), "pip install 'dinov2rt[bench]'"),
        (("build", BUNDLE), "pip install 'dinov2rt[tensorrt-rtx]'"),
        (("completion", "bash"), "pip install 'dinov2rt[completion]'"),
        (("run", "dinov2_vits14", "photos/", "--out", "x.csv"), "dinov2rt export dinov2_vits14"),
        (("verify", BUNDLE, "--device", "cuda"), "pip install 'dinov2rt[cuda]'"),
    ],
)
def test_what_is_missing_is_named_with_the_way_to_it(
    dinov2rt: Command, arguments: tuple[str, ...], words: str
) -> None:
    status, out, err = dinov2rt(*arguments)
    assert (status, out) == (2, "")
    assert words in err


def test_a_plan_says_what_it_is_and_is_not_overwritten(
    fresh: Path, dinov2rt: Command, home: Path
) -> None:
    """README: a plan of TensorRT for RTX on any machine. It is asked for under four names."""
    install(fresh, "tensorrt-rtx", "cuda-python")
    build = ("build", BUNDLE, "--profiles", "224", "--max-batch", "2", "--target")
    status, out, err = dinov2rt(*build, "A100")
    assert status == 0, err
    assert "TensorRT for RTX" in (out + err).splitlines()[0]
    assert "sm80" in out
    (plan,) = (home / BUNDLE / "plans").glob("*.plan")
    before = plan.read_bytes()
    for name in ("sm80", "sm_80", "8.0", "a100"):
        status, _, err = dinov2rt(*build, name)
        assert status == 2
        assert "--force" in err
    assert plan.read_bytes() == before
    assert dinov2rt(*build, "sm80", "--force")[0] == 0


def test_a_result_is_rendered_far_from_the_repository(
    fresh: Path, dinov2rt: Command, home: Path
) -> None:
    """Pages need neither torch nor the sources."""
    install(fresh, "jinja2", "matplotlib", "msgspec", "psutil", "threadpoolctl")
    result = ROOT / "benchmarks/results/epyc-2c-avx512vnni/vit-b-224.json"
    shutil.copy(result, home / "result.json")
    status, out, err = dinov2rt("report", "result.json")
    assert status == 0, err
    assert "result.html" in out
    assert "<svg" in (home / "result.html").read_text()
    assert (home / "result.md").is_file()
