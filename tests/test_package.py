import ast
import builtins
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import dinov2rt
from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.precision import Precision
from dinov2rt.runtime.backends.modes import BACKENDS, DEVICES
from dinov2rt.runtime.backends.registry import MODES
from dinov2rt.runtime.embedding import Pool
from dinov2rt.runtime.recipes import RECIPES

OPTIONAL = {
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "PIL",
    "pyarrow",
    "scipy",
    "safetensors",
    "tensorrt",
}


LITERALS: dict[str, tuple[str, ...]] = {
    "BackendName": BACKENDS,
    "DeviceName": DEVICES,
    "PoolName": tuple(Pool),
    "PrecisionName": tuple(Precision),
    "RecipeName": RECIPES,
    "SnapName": tuple(Snap),
}
"""The public types of names, and what they have to allow."""

ROOT = Path(__file__).parents[1]
ROOMS = ("analysis", "bundle", "engines", "export", "extraction", "runtime", "src/dinov2rt")


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}; import json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_numpy_is_all_that_is_imported() -> None:
    loaded = modules_after("import dinov2rt; dinov2rt.load, dinov2rt.load_image")
    assert "numpy" in loaded
    assert not loaded & OPTIONAL


@pytest.mark.parametrize("name", dinov2rt.__all__)
def test_public_names_exist_and_say_what_they_are(name: str) -> None:
    value = getattr(dinov2rt, name)
    if name == "__version__":
        assert isinstance(value, str)
        return
    if name in LITERALS:  # a type of names; the docstring stands below it in the source
        assert get_args(value)
        return
    assert inspect.getdoc(value)
    # What a dataclass without a docstring gets is its signature.
    assert not inspect.getdoc(value).startswith(f"{name}(")


CLASSES = [value for name in dinov2rt.__all__ if inspect.isclass(value := getattr(dinov2rt, name))]


@pytest.mark.parametrize("kind", CLASSES)
def test_public_methods_say_what_they_are(kind: type) -> None:
    for name, value in vars(kind).items():
        if not name.startswith("_") and (callable(value) or isinstance(value, property)):
            assert value.__doc__, name


def test_all_is_sorted_and_without_repetition() -> None:
    assert list(dinov2rt.__all__) == sorted(set(dinov2rt.__all__))


@pytest.mark.parametrize("name", LITERALS)
def test_the_types_of_names_allow_what_is_parsed(name: str) -> None:
    assert get_args(getattr(dinov2rt, name)) == LITERALS[name]


def test_every_backend_that_has_a_name_is_in_the_registry() -> None:
    assert {mode.backend for mode in MODES} == set(BACKENDS)


def raised(room: str) -> Iterator[tuple[str, str]]:
    """File and name of each error in the section `Raises` of a docstring."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    for file in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            section = re.search(r"^Raises:\n((?: {4}.*\n?)+)", text or "", re.MULTILINE)
            for name in re.findall(r"^ {4}(\w+):", section[1], re.MULTILINE) if section else ():
                yield str(file.relative_to(ROOT)), name


@pytest.mark.parametrize("room", ROOMS)
def test_the_errors_that_docstrings_name_are_public(room: str) -> None:
    named = set(raised(room))
    assert named
    known = {*dinov2rt.__all__, *vars(builtins)}
    assert [(file, name) for file, name in sorted(named) if name not in known] == []


def test_the_package_says_how_it_is_used() -> None:
    assert "dinov2rt.load(" in (dinov2rt.__doc__ or "")
