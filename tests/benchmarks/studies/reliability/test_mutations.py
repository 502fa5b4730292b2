import pytest

from dinov2rt.benchmarks.studies.reliability import mutations
from dinov2rt.benchmarks.studies.reliability.mutations import KINDS, Kind, try_kind


@pytest.mark.parametrize("name", KINDS)
def test_a_few_changed_files_of_each_kind_are_handled(name: str) -> None:
    count = try_kind(KINDS[name], range(25))
    assert count.failures == {}
    assert count.tried == 25
    assert count.refused


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_changed_files_are_read_or_refused_in_a_line(name: str) -> None:
    count = try_kind(KINDS[name], range(2000))
    assert count.failures == {}
    assert count.tried == 2000


def test_what_is_not_handled_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trip(_: object) -> list[str]:
        raise ValueError("tripped\x1b[2J")

    bad = {
        "crash": Kind("a", lambda: b"content", trip),
        "escape": Kind("b", lambda: b"content", lambda _: ["\x1b[2J"]),
        "fine": Kind("c", lambda: b"content", lambda _: []),
    }
    monkeypatch.setattr(mutations, "KINDS", bad)
    monkeypatch.setattr("sys.argv", ["mutations", "--seeds", "2", "--kinds", "crash,escape,fine"])
    assert mutations.main() == 1
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "crash, seed 0: ValueError: tripped" in captured.err
    assert "escape, seed 1: not one line" in captured.err
    assert "fine, seed" not in captured.err
