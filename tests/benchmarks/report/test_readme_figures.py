"""The figures of the README come from the committed runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
VARIANTS = {"ViT-S": "dinov2_vits14", "ViT-B": "dinov2_vitb14", "ViT-L": "dinov2_vitl14"}


def cells(line: str) -> list[str]:
    return [text.strip() for text in line.strip().strip("|").split("|")]


def on_a_xeon_with_amx() -> dict[tuple[str, str], list[str]]:
    """The rows of that machine for one image of 224×224, by variant and precision.

    It has a table for each day that it was measured on.
    """
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    tables = [
        days.partition("\n| variant")[2].partition("\n\n")[0]
        for days in text.split("**xeon-2c-amx**")[1:]
    ]
    rows = [cells(line) for line in "\n".join(tables).splitlines() if "| 1 × 224×224" in line]
    return {(row[0], row[2]): row for row in rows}


def median(row: list[str]) -> str:
    return row[3].partition(" ")[0]


def other_is(row: list[str], said: str) -> bool:
    """Whether `said`, such as "53.5 (torch.compile)", is the fastest other of `row`."""
    ms, _, name = said.partition(" ")
    library = row[5].removesuffix("-bf16")
    return (ms, re.sub(r"\W|torch", "", name).lower()) == (row[6].partition(" ")[0], library)


def test_the_table_of_the_readme_is_that_of_the_performance_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [cells(line) for line in readme.splitlines() if line.startswith("| ViT-")]
    assert [row[0] for row in rows] == list(VARIANTS)
    for name, exact, other, bf16, other_bf16, int8, errors in rows:
        measured = [
            on_a_xeon_with_amx()[VARIANTS[name], each] for each in ("float32", "bfloat16", "int8")
        ]
        assert [exact, bf16, int8] == [median(row) for row in measured]
        assert other_is(measured[0], other)
        assert other_is(measured[1], other_bf16)
        assert [float(each) for each in errors.split(", ")] == [float(row[8]) for row in measured]
