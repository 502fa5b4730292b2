"""Text of others is shown without control characters and cut."""

import pickle

import pytest

from dinov2rt.errors import Dinov2rtError, InputError, first_line
from dinov2rt.foreign import MOST_IN_MESSAGE, MOST_SHOWN, one_line, quoted, several_lines, shown

TITLE = "\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("images/é 犬.jpg", "images/é 犬.jpg"),
        (TITLE, "\\x1b]0;owned\\x07"),
        ("\x9b2J", "\\x9b2J"),  # the same as ESC [ in one character
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202egpj.exe", "\\u202egpj.exe"),  # writes from right to left
        ("caf\udce9.jpg", "caf\\udce9.jpg"),  # a byte that is no UTF-8
        ("a\u2028b\0", "a\\u2028b\\x00"),
    ],
)
def test_control_characters_are_escaped(text: str, safe: str) -> None:
    assert shown(text) == safe
    assert shown(safe) == safe
    safe.encode("utf-8")


def test_long_text_keeps_both_ends() -> None:
    cut = shown("start" + "x" * 83_001 + "end")
    assert len(cut) <= MOST_SHOWN
    assert cut.startswith("startxxx")
    assert cut.endswith("xxxend")
    assert "83009 characters" in cut
    assert len(shown("\0" * 200)) <= MOST_SHOWN


def test_other_values_are_shown_as_text() -> None:
    assert shown(12) == "12"
    assert quoted("a\x1b") == "'a\\x1b'"
    assert len(quoted(b"\x00" * 100_000)) <= MOST_SHOWN


def test_a_message_is_one_line_of_bounded_length() -> None:
    assert one_line(f"first\nsecond {TITLE}") == "first second \\x1b]0;owned\\x07"
    assert len(one_line("x" * 10**6)) <= MOST_IN_MESSAGE


def test_lines_of_our_own_stay_lines() -> None:
    assert several_lines(f"a\nb{TITLE}\n") == "a\nb\\x1b]0;owned\\x07\n"


@pytest.mark.parametrize("kind", [Dinov2rtError, InputError])
def test_no_error_says_more_than_a_line(kind: type[Dinov2rtError]) -> None:
    error = kind(f"{TITLE} {'x' * 100_000}\nsecond; the way out")
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert str(same).isprintable()
        assert len(str(same)) <= MOST_IN_MESSAGE
        assert str(same).endswith("; the way out")
    assert first_line(ValueError(f"{TITLE}\nmore")) == "\\x1b]0;owned\\x07"
