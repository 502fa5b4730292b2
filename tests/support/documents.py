"""Code blocks and commands of README.md and docs/*.md.

A block is indented by four spaces. An HTML comment above it, `<!-- needs: network -->`, names what
it needs besides this machine: such a block is checked, but not run.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_NEEDS = re.compile(r"<!-- needs: (?P<what>[\w, ]+) -->")
_BLOCK = re.compile(r"(?:^    .*\n(?:\n(?=    ))?)+", re.MULTILINE)
_PROGRAMS = ("make", "dinov2rt", "python", "python3", "pip", "docker", "curl", "uvicorn")


@dataclass(frozen=True, slots=True)
class Block:
    """A code block, with the place where it stands; `needs` is empty if it runs anywhere."""

    place: str
    text: str
    needs: str

    @property
    def is_python(self) -> bool:
        return "dinov2rt." in self.text and " = " in self.text and not self.commands

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line, comments and variables left out."""
        return [words for line in self._lines() if (words := _words(line))]

    def _lines(self) -> list[str]:
        return self.text.replace("\\\n", " ").splitlines()


def blocks() -> Iterator[Block]:
    """Every block of every document."""
    for file in DOCUMENTS:
        text = file.read_text(encoding="utf-8") + "\n"
        for match in _BLOCK.finditer(text):
            above = text[: match.start()].rstrip().rpartition("\n")[2]
            needs = _NEEDS.fullmatch(above)
            line = text.count("\n", 0, match.start()) + 1
            code = re.sub(r"^    ", "", match[0], flags=re.MULTILINE)
            yield Block(f"{file.name}:{line}", code, needs["what"] if needs else "")


def modules() -> set[str]:
    """The modules that `python -m` runs, in blocks and in sentences."""
    texts = " ".join(file.read_text(encoding="utf-8") for file in DOCUMENTS)
    return set(re.findall(r"python3?\s+-m\s+(dinov2rt[\w.]*)", texts))


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose, with an apostrophe
        return []
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    if not words:
        return []
    words[0] = words[0].removeprefix(".venv/bin/")
    return words if words[0] in _PROGRAMS else []
