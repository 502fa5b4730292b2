"""What is built from the sources holds every room."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("analysis", "benchmarks", "bundle", "engines", "export", "extraction", "runtime")

IMPORT_ALL = """
import importlib, pkgutil, sys
import dinov2rt
assert dinov2rt.__file__.startswith(sys.argv[1]), dinov2rt.__file__
names = [m.name for m in pkgutil.walk_packages(dinov2rt.__path__, "dinov2rt.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print("\\n".join(names))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, so that building leaves nothing in the working tree."""
    folder = tmp_path_factory.mktemp("sources") / "dinov2rt"
    files = (
        subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"],  # noqa: S607
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, files):
        source, target = ROOT / name, folder / name
        if not (source.exists() or source.is_symlink()) or name.startswith("tests/golden"):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            target.write_bytes(source.read_bytes())
    return folder


def built(sources: Path, call: str, out: Path) -> Path:
    """What the build backend makes, with no other environment than this one."""
    code = f"from setuptools import build_meta; print(build_meta.{call}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=sources, check=True, capture_output=True, text=True
    )
    return out / done.stdout.splitlines()[-1]


def test_a_wheel_works_elsewhere(sources: Path, tmp_path: Path) -> None:
    wheel = built(sources, "build_wheel", tmp_path)
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # noqa: S202
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(site)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": ""},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    imported = done.stdout.split()
    for room in ROOMS:
        assert f"dinov2rt.{room}" in imported
    assert (site / "dinov2rt/benchmarks/report/templates/report.html").is_file()
    assert list((site / "dinov2rt/export/photos").glob("*.jpg"))
    assert len(list((site / "dinov2rt/bundle/tasks/class_tables").glob("*.json"))) == 3
    assert (site / "dinov2rt/py.typed").is_file()


def test_an_sdist_holds_every_room(sources: Path, tmp_path: Path) -> None:
    with tarfile.open(built(sources, "build_sdist", tmp_path)) as archive:
        names = ["/".join(name.split("/")[1:]) for name in archive.getnames()]
    for room in ROOMS:
        prefix = f"src/dinov2rt/{room}/"
        assert any(name.startswith(prefix) and name.endswith(".py") for name in names), room
    tables = [
        name for name in names if "bundle/tasks/class_tables/" in name and name.endswith(".json")
    ]
    assert len(tables) == 3
    documents = [str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md")]
    assert documents, "this test would check nothing"
    for file in ("README.md", "CHANGELOG.md", "LICENSE", "NOTICE", "pyproject.toml", *documents):
        assert file in names
