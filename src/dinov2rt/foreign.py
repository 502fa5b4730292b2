"""Makes foreign text safe to print: without control characters and endless lines.

Names in manifests, archives, columns, checkpoints and file systems may hold escape sequences that
set a terminal's title or clear its screen, characters that turn the direction of writing, or
megabytes. They are shown as `repr` would show them, and cut. Files keep their exact bytes.
"""

from typing import Any

MOST_SHOWN = 300
"""Characters of one foreign value."""

MOST_IN_MESSAGE = 4000
"""Characters of a whole message, which may hold several values and a command to paste."""


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """`value` as one line of at most `most` characters; the middle of a longer text is left out.

    Characters that are not `str.isprintable` become backslash escapes, as in `repr`.
    """
    text = value if isinstance(value, str) else str(value)
    head, tail = escaped(text[:most]), escaped(text[-most:])
    if len(text) <= most and len(head) <= most:
        return head
    gap = f"… ({len(text)} characters) …"
    kept = max(2, most - len(gap))
    return f"{head[: kept - kept // 2]}{gap}{tail[-(kept // 2) :]}"


def quoted(value: object) -> str:
    """The `repr` of `value`, an argument or a name, for a message: cut and escaped."""
    return shown(repr(value))


def escaped(text: str) -> str:
    """`text` with a backslash escape for each character that is not printable."""
    return text if text.isprintable() else "".join(map(_escaped_character, text))


def one_line(text: str) -> str:
    """A whole message as one line; line ends become spaces."""
    return shown(" ".join(text.splitlines()), MOST_IN_MESSAGE)


def in_one_line(document: Any) -> Any:
    """A JSON document with every text in it, keys included, as `one_line` makes it."""
    if isinstance(document, str):
        return one_line(document)
    if isinstance(document, dict):
        return {one_line(key): in_one_line(value) for key, value in document.items()}
    return [in_one_line(value) for value in document] if isinstance(document, list) else document


def several_lines(text: str) -> str:
    """Text in our own layout that holds foreign values: line ends are kept."""
    return "\n".join(map(escaped, text.split("\n")))


def _escaped_character(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
