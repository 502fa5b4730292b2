"""A bundle takes its place in one step; what killed exports left is removed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dinov2rt.errors import InputError
from dinov2rt.place import built_beside


def build(out: Path, text: str, *, replace: bool = True) -> None:
    with built_beside(out, replace=replace) as partial:
        (partial / "manifest.json").write_text(text)


def test_there_is_a_bundle_at_every_moment(tmp_path: Path) -> None:
    out, ended, seen = tmp_path / "bundle", threading.Event(), set()
    build(out, "0")

    def replace() -> None:
        for turn in range(200):
            build(out, str(turn % 2))
        ended.set()

    thread = threading.Thread(target=replace)
    thread.start()
    while not ended.is_set():
        seen.add((out / "manifest.json").read_text())  # raises where there is none
    thread.join()
    assert seen <= {"0", "1"}
    assert list(tmp_path.iterdir()) == [out]


def test_without_force_a_bundle_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with (
        pytest.raises(InputError, match=r"bundle was created meanwhile; remove it, or"),
        built_beside(out, replace=False) as partial,
    ):
        (partial / "manifest.json").write_text("second")
        build(out, "first", replace=False)
    assert (out / "manifest.json").read_text() == "first"
    assert list(tmp_path.iterdir()) == [out]


KILLED = """
import os, signal, sys
from pathlib import Path
from dinov2rt.place import built_beside
with built_beside(Path(sys.argv[1])) as partial:
    (partial / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], env=environment)
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".bundle.")
    build(out, "whole")
    assert list(tmp_path.iterdir()) == [out]


def test_what_another_export_is_at_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with built_beside(out) as first:
        (first / "manifest.json").write_text("first")
        build(out, "second")
        assert (out / "manifest.json").read_text() == "second"
    assert (out / "manifest.json").read_text() == "first"
    assert list(tmp_path.iterdir()) == [out]


def test_a_bundle_that_stood_aside_when_an_export_was_killed_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    aside = tmp_path / ".bundle.old.x" / "bundle"
    aside.mkdir(parents=True)
    (aside / "manifest.json").write_text("old")
    with pytest.raises(ValueError, match="stop"), built_beside(out):
        raise ValueError("stop")
    assert (out / "manifest.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]
