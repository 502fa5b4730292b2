"""The figures of the README come from the committed runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
VARIANTS = {"ViT-S": "dinov2_vits14", "ViT-B": "dinov2_vitb14", "ViT-L": "dinov2_vitl14"}


def cells(line: str) -> list[str]:
    return [text.strip() for text in line.strip().strip("|").split("|")]


def first_table() -> dict[tuple[str, str], list[str]]:
    """The rows for one image of 224×224 of the first table, by variant and precision."""
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    lines = text.partition("\n| variant")[2].partition("\n\n")[0].splitlines()
    rows = [cells(line) for line in lines if "1 × 224×224" in line]
    return {(row[0], row[2]): row for row in rows}


def test_the_table_of_the_readme_is_that_of_the_performance_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [cells(line) for line in readme.splitlines() if line.startswith("| ViT-")]
    assert [row[0] for row in rows] == list(VARIANTS)
    for name, own, other, int8, errors in rows:
        exact, coarse = (first_table()[VARIANTS[name], each] for each in ("float32", "int8"))
        assert own == exact[3].partition(" ")[0]
        assert other.partition(" ")[0] == exact[6].partition(" ")[0]
        assert re.sub(r"\W", "", other.partition(" ")[2]).lower() == exact[5]
        assert int8 == coarse[3].partition(" ")[0]
        assert [float(each) for each in errors.split(", ")] == [float(exact[8]), float(coarse[8])]
