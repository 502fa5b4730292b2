"""Write the API reference into docs/api, from the docstrings: `make docs`.

Warnings are errors: run it with `python -W error`.
"""

import sys
from pathlib import Path

import pdoc

import dinov2rt

OUT = Path(__file__).parent / "api"
ROOMS = ("bundle", "runtime", "engines", "export", "extraction", "analysis")


def main(out: Path) -> None:
    """Document the public names, then every module of the rooms."""
    for name in dinov2rt.__all__:
        getattr(dinov2rt, name)  # imported when first used; pdoc looks for what is there
    pdoc.render.configure(docformat="google", search=True, show_source=False)
    pdoc.pdoc("dinov2rt", *(f"dinov2rt.{room}" for room in ROOMS), output_directory=out)
    print(out / "index.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
