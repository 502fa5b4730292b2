"""The names in the Python bindings of `tensorrt`, without its library of two gigabytes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from support.installed import lacking

_CACHE = Path(sys.prefix) / "share" / "dinov2rt-tests"
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")

# What the extension module looks up when it is loaded; none of it is ever called.
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)

_FIND_MISSING = """
import functools, json, sys
import tensorrt_bindings

def exists(name):
    try:
        functools.reduce(getattr, name.split("."), tensorrt_bindings)
    except AttributeError:
        return False
    return True

json.dump([name for name in json.load(sys.stdin) if not exists(name)], sys.stdout)
"""


def missing(version: str, names: Iterable[str]) -> set[str]:
    """The `names`, such as "IBuilderConfig.set_flag", that `tensorrt` of `version` lacks."""
    bindings = _installed(version)
    environment = os.environ | {"PYTHONPATH": str(bindings), "LD_LIBRARY_PATH": str(bindings)}
    answer = subprocess.run(
        [sys.executable, "-c", _FIND_MISSING],
        input=json.dumps(sorted(names)),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(answer.stdout))


def _installed(version: str) -> Path:
    """Fetched and made loadable once; the test is skipped where that cannot be."""
    folder = _CACHE / f"tensorrt-cu13-bindings-{version}"
    if folder.is_dir():
        return folder
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        lacking("no C compiler: the bindings of tensorrt need stand-ins for its library")
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as partial:
        place = Path(partial) / "bindings"
        _fetch(version, place)
        _compile_stand_ins(compiler, place, version.partition(".")[0])
        place.rename(folder)
    return folder


def _fetch(version: str, place: Path) -> None:
    requirement = f"tensorrt-cu13-bindings=={version}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--retries=1", "--timeout=15", "--no-deps", "--only-binary=:all:"]
    answer = subprocess.run(
        [*pip, *options, f"--target={place}", requirement], capture_output=True, text=True
    )
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        lacking(f"pip cannot fetch {requirement}: {reason}")


def _compile_stand_ins(compiler: str, place: Path, major: str) -> None:
    source = place / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
    for library in _LIBRARIES:
        output = place / f"lib{library}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", output, source], check=True)
