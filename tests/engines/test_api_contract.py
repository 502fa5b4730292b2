"""Checks that every name of TensorRT that the source uses exists, also where it cannot run.

Code that runs on tensorrt_rtx is recorded while it runs. For code that needs a GPU, the names are
read from the source: variables are named after the classes of their values.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import dinov2rt
from dinov2rt.engines.build import build_plan
from dinov2rt.engines.options import BuildOptions


def _import_beside(name: str) -> Any:
    """Import a helper of these tests; their folder is not a package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


bindings, recorder = _import_beside("bindings"), _import_beside("recorder")

VERSIONS = ("10.16.1.11", "11.4.0.106")
OWNERS = {"engines/flavours.py", "tensorrt/flavour.py"}
"""The one module of each room that may use what only one flavour has."""

_CLASS_OF = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "runtime": "Runtime",
}
_FOLDERS = {
    "engines": _CLASS_OF,
    "runtime/tensorrt": _CLASS_OF | {"config": "IRuntimeConfig"},
    # `runtime` is the CUDA runtime there, not a class of TensorRT.
    "runtime/gpu": {name: kind for name, kind in _CLASS_OF.items() if name != "runtime"},
}
_SOURCES = Path(dinov2rt.__file__).parent

Touched = dict[str, set[str]]


@pytest.fixture(scope="module")
def touched_by_build(
    trt: Any, bundle_s_reg: Path, tmp_path_factory: pytest.TempPathFactory
) -> Touched:
    """Names that a build with every option of RTX uses, and the files that use them."""
    touched: Touched = {}
    bundle = tmp_path_factory.mktemp("contract")
    for file in bundle_s_reg.iterdir():
        if file.is_file():
            (bundle / file.name).symlink_to(file)
    options = BuildOptions(
        flavour="tensorrt-rtx",
        profiles="224",
        max_batch=2,
        memory_limit_mib=1024,
        optimization_level=2,
        weight_streaming=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt_rtx", recorder.Recorded(trt, touched))
        build_plan(bundle, options)
    return touched


@pytest.fixture(scope="module")
def touched_in_source() -> Touched:
    """Attributes of TensorRT's classes in the source; variables are named after their class."""
    touched: Touched = {}
    for folder, class_of in _FOLDERS.items():
        files = list((_SOURCES / folder).glob("*.py"))
        assert files, f"{folder} holds no source: this test would check nothing"
        for file in files:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for name in _names_in(tree, class_of):
                touched.setdefault(name, set()).add(f"{file.parent.name}/{file.name}")
    return touched


def test_the_recorder_sees_what_a_build_uses(touched_by_build: Touched) -> None:
    assert touched_by_build["IBuilderConfig.set_flag"] == {"engines/configure.py"}
    assert touched_by_build["ComputeCapability.SM80"] == {"engines/flavours.py"}
    assert touched_by_build["IAttention.decomposable"] == {"engines/fusion.py"}
    assert {"Builder", "OnnxParser.parse_from_file", "LayerType.MATRIX_MULTIPLY"} <= set(
        touched_by_build
    )


def test_the_source_shows_what_needs_a_gpu(touched_in_source: Touched) -> None:
    assert "EngineInspector.get_engine_information" in touched_in_source
    assert "LayerInformationFormat.ONELINE" in touched_in_source
    assert "Runtime.deserialize_cuda_engine" in touched_in_source


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["touched_by_build", "touched_in_source"])
def test_tensorrt_has_what_is_used_outside_the_modules_that_own_the_differences(
    how: str, version: str, request: pytest.FixtureRequest
) -> None:
    touched: Touched = request.getfixturevalue(how)
    shared = {name for name, files in touched.items() if files - OWNERS}
    assert bindings.missing(version, shared) == set()


@pytest.mark.parametrize("how", ["touched_by_build", "touched_in_source"])
def test_names_that_the_owners_use_are_in_one_flavour_or_the_other(
    how: str, trt: Any, request: pytest.FixtureRequest
) -> None:
    touched: Touched = request.getfixturevalue(how)
    not_in_rtx = {name for name in touched if not _has(trt, name)}
    for version in VERSIONS:
        assert bindings.missing(version, not_in_rtx) == set()


def test_rtx_has_what_is_used_outside_the_owners(trt: Any, touched_in_source: Touched) -> None:
    shared = {name for name, files in touched_in_source.items() if files - OWNERS}
    assert {name for name in shared if not _has(trt, name)} == set()


def test_names_that_tensorrt_11_dropped_are_reported() -> None:
    names = {"BuilderFlag.FP16", "BuilderFlag.STRIP_PLAN", "ComputeCapability.SM80"}
    assert bindings.missing("10.16.1.11", names) == {"ComputeCapability.SM80"}
    assert bindings.missing("11.4.0.106", names) == {"BuilderFlag.FP16", "ComputeCapability.SM80"}


def _names_in(tree: ast.Module, class_of: Mapping[str, str]) -> Iterator[str]:
    """`trt.A`, `trt.A.B`, and `Class.b` for attribute `b` of a variable named after a class."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        owner = _last_name(node.value)
        if owner == "trt":
            yield node.attr
        elif owner in class_of:
            yield f"{class_of[owner]}.{node.attr}"
        elif isinstance(node.value, ast.Attribute) and _last_name(node.value.value) == "trt":
            yield f"{node.value.attr}.{node.attr}"


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _has(trt: Any, name: str) -> bool:
    owner, _, member = name.rpartition(".")
    return hasattr(getattr(trt, owner, None) if owner else trt, member)
