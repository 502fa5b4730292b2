"""What each room may hold and ask for; what they may import, import-linter says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_FILES = 18
SOURCE = ("analysis", "benchmarks", "bundle", "engines", "export", "extraction", "runtime", "src")

MAY_REQUIRE = {
    "analysis": {"PIL", "faiss", "pyarrow", "scipy", "sklearn", "threadpoolctl"},
    "benchmarks": {"onnxruntime", "pyarrow", "tensorrt_rtx"},
    "bundle": {"fsspec"},
    "engines": {"onnx"},
    "export": {"huggingface_hub"},
    "extraction": {"PIL", "pyarrow", "ray"},
    "runtime": {
        "PIL",
        "cuda",
        "onnxruntime",
        "openvino",
        "pillow_heif",
        "tensorrt",
        "tensorrt_rtx",
    },
}
"""The optional packages that a room may ask for. export and benchmarks import theirs at the top."""

NAMED_BY_A_VARIABLE = {
    "runtime/images.py": {"PIL"},
    "runtime/tensorrt/flavour.py": {"tensorrt", "tensorrt_rtx"},
}
"""Files that give `require` a variable, and what it holds."""


def folders() -> Iterator[Path]:
    for room in (*SOURCE, "tests"):
        for folder in (ROOT / room, *(ROOT / room).rglob("*")):
            if folder.is_dir() and not folder.is_symlink() and "__pycache__" not in folder.parts:
                yield folder


@pytest.mark.parametrize(
    "folder", list(folders()), ids=lambda folder: str(folder.relative_to(ROOT))
)
def test_no_folder_is_crowded(folder: Path) -> None:
    files = [file for file in folder.iterdir() if file.suffix == ".py"]
    assert len(files) <= MOST_FILES


def asked_for(room: str) -> dict[str, set[str]]:
    """The packages that calls of `require` name, with the files that do."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / room).rglob("*.py"):
        place = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require":
                for package in packages(node.args[0], place):
                    found.setdefault(package, set()).add(place)
    return found


def packages(name: ast.expr, place: str) -> set[str]:
    start = name.values[0] if isinstance(name, ast.JoinedStr) else name
    if isinstance(start, ast.Constant):
        return {str(start.value).partition(".")[0]}
    assert place in NAMED_BY_A_VARIABLE, f"{place} asks for {ast.unparse(name)}; list what that is"
    return NAMED_BY_A_VARIABLE[place]


@pytest.mark.parametrize("room", SOURCE[:-1])
def test_a_room_asks_for_these_packages_alone(room: str) -> None:
    found = asked_for(room)
    assert set(found) == MAY_REQUIRE[room], found


def test_every_room_is_linked_into_the_package() -> None:
    for room in SOURCE[:-1]:
        link = ROOT / "src/dinov2rt" / room
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / room
