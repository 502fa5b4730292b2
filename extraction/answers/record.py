"""The record of one image's predictions, read back from a folder that anybody may change."""

from typing import Any

from dinov2rt.bundle.codec import typed

Record = dict[str, Any]

_MOST = 2**31 - 1
"""The table of all records has 32 bits for a number."""


def checked(document: Any) -> Record:
    """`document`, if it is such a record.

    Raises:
        KeyError: a value is missing.
        TypeError: a value has another type.
        ValueError: a number is too large or negative.
    """
    record: Record = typed(dict, document, "the record")
    typed(str, record["image"], "image")
    for name in ("height", "width"):
        _check_whole(record[name], name)
    for head, answer in typed(dict, record["heads"], "heads").items():
        _check_answer(typed(dict, answer, head), head)
    return record


def _check_answer(answer: Record, head: str) -> None:
    if "file" in answer:
        typed(str, answer["file"], f"file of {head}")
    if "nearest_m" in answer:
        for name in ("nearest_m", "farthest_m"):
            typed(float, answer[name], name)
        return
    for each in typed(list, answer["classes"], f"classes of {head}"):
        typed(str, each["name"], "name")
        _check_whole(each["index"], "index")
        typed(float, each["share"] if "share" in each else each["probability"], "share")


def _check_whole(value: Any, name: str) -> None:
    if not 0 <= typed(int, value, name) <= _MOST:
        raise ValueError(f"{name} is out of range")
