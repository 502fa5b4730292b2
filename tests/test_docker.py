"""What can be said of the Dockerfiles without Docker; CI builds and runs them."""

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction, comments and continued lines taken out."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def test_there_is_one_for_each_kind() -> None:
    assert [file.name for file in FILES] == ["cpu.Dockerfile", "gpu.Dockerfile"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_image_is_small_and_nobodys_root(file: Path) -> None:
    steps = instructions(file)
    last = max(index for index, (keyword, _) in enumerate(steps) if keyword == "FROM")
    final = steps[last:]
    users = [index for index, (keyword, name) in enumerate(final) if keyword == "USER"]
    assert users
    assert final[users[-1]][1] not in {"root", "0"}
    assert not [1 for keyword, _ in final[users[-1] :] if keyword in {"RUN", "COPY"}]
    installs = " ".join(text for keyword, text in final if keyword == "RUN")
    assert "--no-cache-dir" in installs
    assert not re.search(r"\btorch\b|export|dev\b", installs)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_copied_exists_and_is_not_ignored(file: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for keyword, text in instructions(file):
        if keyword == "COPY":
            *sources, _ = shlex.split(text)
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source.split("/")[0] not in ignored


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_example_service_is_the_entry_point_and_knows_its_options(file: Path) -> None:
    steps = dict(instructions(file))
    assert json.loads(steps["ENTRYPOINT"]) == ["python", "/app/service.py"]
    service = (ROOT / "examples/service.py").read_text()
    for argument in json.loads(steps["CMD"]):
        if argument.startswith("--"):
            assert f'add_argument("{argument}"' in service
    assert '@app.get("/health")' in service
    assert "/health" in steps["HEALTHCHECK"]
