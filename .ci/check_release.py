"""Whether this commit may be released as a tag: `python .ci/check_release.py v1.2.3`.

The tag is the version, CHANGELOG.md has a section for it, and the addresses in `[project.urls]` are
those of a real repository. Until the first release they are at example.org, which is reserved.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACEHOLDER = "example.org"


def main(tag: str) -> int:
    """Print a line for each obstacle; 1 if there is one."""
    found = list(obstacles(tag))
    for line in found:
        print(f"{tag} cannot be released: {line}")
    return 1 if found else 0


def obstacles(tag: str) -> Iterator[str]:
    """The reasons against a release under `tag`, each with the way out."""
    text = (ROOT / "src/dinov2rt/_version.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'__version__ = "(.+)"', text)
    if tag != f"v{version}":
        yield f"the version is {version}; tag v{version}, or change src/dinov2rt/_version.py"
    if f"## [{version}]" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        yield f"CHANGELOG.md has no section [{version}]; rename [Unreleased]"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, url in project["urls"].items():
        if PLACEHOLDER in url:
            yield f"[project.urls] {name} is {url}; put the public repository's address there"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
