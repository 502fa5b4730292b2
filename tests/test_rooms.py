"""What each room may hold and ask for; what they may import, import-linter says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_FILES = 18
SOURCE = ("analysis", "benchmarks", "bundle", "engines", "export", "extraction", "runtime", "src")

MAY_REQUIRE = {
    "bundle": {"fsspec"},
    "runtime": {"PIL", "cuda", "onnxruntime", "openvino"},
    "engines": {"onnx", "google"},
    "extraction": {"PIL", "pyarrow", "ray"},
    "analysis": {"PIL", "faiss", "pyarrow", "scipy", "sklearn"},
}
"""The optional packages that a room may ask for. export and benchmarks import theirs at the top."""


def folders() -> Iterator[Path]:
    for room in SOURCE:
        for folder in (ROOT / room, *(ROOT / room).rglob("*")):
            if folder.is_dir() and not folder.is_symlink() and "__pycache__" not in folder.parts:
                yield folder


@pytest.mark.parametrize(
    "folder", list(folders()), ids=lambda folder: str(folder.relative_to(ROOT))
)
def test_no_folder_is_crowded(folder: Path) -> None:
    files = [file for file in folder.iterdir() if file.suffix == ".py"]
    assert len(files) <= MOST_FILES


def required(room: str) -> dict[str, set[str]]:
    """The packages that calls of `require` name, with the files that do."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require"):
                continue
            name = node.args[0]
            if isinstance(name, ast.Constant):
                found.setdefault(str(name.value).partition(".")[0], set()).add(file.name)
    return found


@pytest.mark.parametrize("room", MAY_REQUIRE)
def test_a_room_asks_for_no_other_package(room: str) -> None:
    found = required(room)
    assert set(found) <= MAY_REQUIRE[room], found
    assert found, "this test would check nothing"


def test_every_room_is_linked_into_the_package() -> None:
    for room in SOURCE[:-1]:
        link = ROOT / "src/dinov2rt" / room
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / room
