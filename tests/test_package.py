import inspect
import json
import subprocess
import sys

import pytest

import dinov2rt

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


def test_the_package_says_how_it_is_used() -> None:
    assert "dinov2rt.load(" in (dinov2rt.__doc__ or "")
