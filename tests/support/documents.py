"""Code blocks and commands of the pages that a reader copies from.

A block is indented by four spaces. An HTML comment right above it may say how tests treat it:

- `<!-- not run: needs a GPU -->`: it is checked, but not run; REASONS lists what may stand there.
- `<!-- shorter in tests: --seeds 4000 -> --seeds 20 -->`: it is run with this text in its place.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
REASONS = {
    "needs a network",
    "needs a GPU",
    "needs a cluster",
    "needs masks of your own",
    "installs packages",
    "runs the tests",
}
_COMMENT = re.compile(r"<!-- (?P<kind>not run|shorter in tests): (?P<text>.+) -->")
_BLOCK = re.compile(r"(?:^    .*\n(?:\n(?=    ))?)+", re.MULTILINE)
_PROGRAMS = ("make", "dinov2rt", "python", "python3", "pip", "docker", "curl", "uvicorn")


@dataclass(frozen=True, slots=True)
class Block:
    """A code block, the page and line where it stands, and what the comment above it says."""

    page: Path
    line: int
    text: str
    not_run: str
    shorter: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_python(self) -> bool:
        return "dinov2rt." in self.text and " = " in self.text and not self.commands

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line, comments and variables left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := _words(line))]

    @property
    def text_in_tests(self) -> str:
        """The block as a test runs it."""
        if not self.shorter:
            return self.text
        long, _, short = self.shorter.partition(" -> ")
        assert long in self.text, f"{self.place}: {long!r} is not in the block"
        return self.text.replace(long, short)


def blocks() -> Iterator[Block]:
    """Every block of every document."""
    for page in DOCUMENTS:
        text = page.read_text(encoding="utf-8") + "\n"
        for match in _BLOCK.finditer(text):
            above = text[: match.start()].rstrip().rpartition("\n")[2]
            comment = _COMMENT.fullmatch(above)
            said = {comment["kind"]: comment["text"]} if comment else {}
            line = text.count("\n", 0, match.start()) + 1
            code = re.sub(r"^    ", "", match[0], flags=re.MULTILINE)
            yield Block(page, line, code, said.get("not run", ""), said.get("shorter in tests", ""))


def comments() -> list[str]:
    """Every HTML comment that stands alone right above a block, whatever it says."""
    texts = [page.read_text(encoding="utf-8") for page in DOCUMENTS]
    return [
        comment for text in texts for comment in re.findall(r"^(<!-- .+ -->)\n\n    ", text, re.M)
    ]


def modules() -> set[str]:
    """The modules that `python -m` runs, in blocks and in sentences of pages and decisions."""
    pages = (*DOCUMENTS, *sorted((ROOT / "docs/adr").glob("*.md")))
    texts = " ".join(page.read_text(encoding="utf-8") for page in pages)
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
