"""JSON of unknown origin has one meaning, or is refused."""

import json

import pytest

from dinov2rt.strict_json import MOST_NESTED, parse


def test_what_is_sound_is_read_as_json_reads_it() -> None:
    text = '{"a": [1, -2.5, 1e3, true, null, "\\u00e9\\ud83d\\ude00"], "b": {"c": {}}}'
    assert parse(text.encode()) == json.loads(text)
    deep = "[" * MOST_NESTED + "]" * MOST_NESTED
    assert parse(deep.encode()) == json.loads(deep)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' stands twice"),
        ("NaN", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("1e999", "the number 1e999 is too large"),
        ("9" * 400, "is too large"),
        ("9" * 5000, "is too large"),
        (str(2**63), "is too large"),
        ('"\\ud800"', "lone surrogate"),
        ('{"\\udfff": 1}', "lone surrogate"),
        ("[" * 600 + "]" * 600, "nested more than 64 deep"),
        ("[" * 100_000, "nested more than 64 deep"),
        ('{"a":' * 600 + "1" + "}" * 600, "nested more than 64 deep"),
        (f"[{'1,' * 400_000}1]", "more than 400000 values"),
        ("{", "Expecting property name"),
    ],
)
def test_the_rest_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse(text.encode())
    assert reason in str(error.value)
    assert len(str(error.value)) < 500


def test_bytes_that_are_no_utf_8_are_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        parse(b'"\xff"')
