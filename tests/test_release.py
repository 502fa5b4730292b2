"""A release is refused until its tag, its changelog and its addresses are right."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = (".ci/check_release.py", "src/dinov2rt/_version.py", "CHANGELOG.md", "pyproject.toml")


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """The files of a release 1.2.3 that may go out."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "src/dinov2rt/_version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.2.3] - 2027-01-01\n")
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace("example.org", "code.example.com"))
    return tmp_path


def check(folder: Path, tag: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(folder / ".ci/check_release.py"), tag]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_a_release_that_is_ready_passes(ready: Path) -> None:
    done = check(ready, "v1.2.3")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("file", "before", "after", "line"),
    [
        ("src/dinov2rt/_version.py", "1.2.3", "1.2.4", "the version is 1.2.4; tag v1.2.4"),
        ("CHANGELOG.md", "[1.2.3]", "[1.2.2]", "CHANGELOG.md has no section [1.2.3]"),
        ("pyproject.toml", "code.example.com", "example.org", "[project.urls] Source is https://"),
    ],
)
def test_obstacles_are_named(ready: Path, file: str, before: str, after: str, line: str) -> None:
    path = ready / file
    path.write_text(path.read_text().replace(before, after))
    done = check(ready, "v1.2.3")
    assert done.returncode == 1
    assert line in done.stdout
