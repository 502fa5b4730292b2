"""What long work says in a log."""

import time

import pytest

from dinov2rt.cli import main
from dinov2rt.cli.output import a_line_a_minute, progress
from dinov2rt.cli.progress import Progress

PATIENCE_S = 60


def test_a_log_is_told_once_in_a_while_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    said = ""
    with a_line_a_minute(period_s=0.01):
        progress("searching")
        deadline = time.monotonic() + PATIENCE_S
        while "0 min: searching" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
            time.sleep(0.01)
        with Progress(10) as images:
            images.step()
            while "1/10 images" not in said and time.monotonic() < deadline:
                said += capsys.readouterr().err
                time.sleep(0.01)
    assert "dinov2rt: 0 min: searching" in said
    assert "1/10 images" in said
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""  # nothing after it has ended


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with a_line_a_minute():
        progress("a step of a second")
    assert main(["info"]) == 0
    assert capsys.readouterr().err == ""


def test_a_bare_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("usage: dinov2rt")
    assert all(f"\n    {verb} " in captured.out for verb in ("export", "run", "doctor"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_verbs_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    dashes = "" if shell == "tcsh" else "--"  # its rules name options without them
    for word in ("export", "search", f"{dashes}retry-failed", f"{dashes}no-scale"):
        assert word in script
