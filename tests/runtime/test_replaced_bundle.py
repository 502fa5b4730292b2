"""A bundle that is replaced while it is loaded: the old one, the new one, or refused."""

import dataclasses
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest

from dinov2rt.bundle.entries import FileEntry, WeightsEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.replaced import not_replaced
from dinov2rt.cli import main
from dinov2rt.errors import BundleError, BundleReplacedError, Dinov2rtError
from dinov2rt.onnx_files import external_files
from dinov2rt.runtime.model import load

PIXELS = np.full((1, 28, 42, 3), 100, np.uint8)
LOADS = 150
"""And as many more as it takes until both bundles were served."""


@pytest.fixture
def two_bundles(pooling_bundle: Path) -> tuple[Path, Path]:
    """The pooling bundle, and one whose weights double what it returns; each says which it is."""
    other = pooling_bundle.with_name("doubled")
    shutil.copytree(pooling_bundle, other)
    (other / "fp32.onnx.data").write_bytes(np.full(3, 2, np.float32).tobytes())
    manifest = Manifest.read(other)
    files = tuple(FileEntry.of(other, name) for name in ("fp32.onnx", "fp32.onnx.data"))
    graph = dataclasses.replace(manifest.graphs[0], files=files)
    weights = WeightsEntry(source="synthetic:1", sha256="1" * 64)
    dataclasses.replace(manifest, graphs=(graph,), weights=weights).write(other)
    return pooling_bundle, other


SWAPPER = """
import os, random, shutil, sys, time
place, first, second, stop, pause = sys.argv[1:]
turn, pauses = 0, random.Random(0)
while not os.path.exists(stop):
    source = (first, second)[turn % 2]
    fresh, aside = f"{place}.fresh", f"{place}.aside"
    shutil.copytree(source, fresh)
    os.rename(place, aside)
    os.rename(fresh, place)
    shutil.rmtree(aside)
    turn += 1
    time.sleep(pauses.random() * float(pause))
"""


@contextmanager
def swapping(place: Path, bundles: tuple[Path, Path], stop: Path, pause_s: float) -> Iterator[None]:
    """Another process replaces what stands at `place`, over and over, with pauses up to one."""
    command = [sys.executable, "-c", SWAPPER, str(place), *map(str, bundles), str(stop)]
    command.append(str(pause_s))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as swapper:
        try:
            yield
        finally:
            stop.touch()
            swapper.communicate()


def seconds_to_load(place: Path, backend: str) -> float:
    load(place, backend=backend, device="cpu", threads=1).close()  # imports the backend
    began = time.perf_counter()
    load(place, backend=backend, device="cpu", threads=1).close()
    return time.perf_counter() - began


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_old_new_or_refused_and_never_a_mixture(
    two_bundles: tuple[Path, Path], tmp_path: Path, backend: str
) -> None:
    place = tmp_path / "served"
    shutil.copytree(two_bundles[0], place)
    counts = {"synthetic:0": 0, "synthetic:1": 0, "refused": 0}
    # Some loads have to end between two swaps, however slow this machine is.
    with swapping(place, two_bundles, tmp_path / "stop", 4 * seconds_to_load(place, backend)):
        loads = 0
        while loads < LOADS or not (counts["synthetic:0"] and counts["synthetic:1"]):
            loads += 1
            try:
                model = load(place, backend=backend, device="cpu", threads=1)
            except Dinov2rtError:
                counts["refused"] += 1
                continue
            with model:
                source = model.manifest.weights.source
                gain = 1 + int(source == "synthetic:1")
                assert model(PIXELS).cls_token[0, 0] == pytest.approx(100 * gain), source
            counts[source] += 1


def test_a_model_that_serves_keeps_its_weights(two_bundles: tuple[Path, Path]) -> None:
    bundle, other = two_bundles
    with load(bundle, backend="onnxruntime", device="cpu") as model:
        shutil.rmtree(bundle)
        other.rename(bundle)
        assert model(PIXELS).cls_token[0, 0] == pytest.approx(100)


def test_a_replaced_file_is_named(two_bundles: tuple[Path, Path]) -> None:
    bundle, other = two_bundles
    message = r"fp32\.onnx\.data is another file now"
    with pytest.raises(BundleReplacedError, match=message), not_replaced(bundle) as watch:
        watch.add(Manifest.read(bundle).files)
        (other / "fp32.onnx.data").replace(bundle / "fp32.onnx.data")


def test_an_error_that_a_replacement_explains_is_that_of_the_replacement(
    two_bundles: tuple[Path, Path],
) -> None:
    bundle, other = two_bundles
    with pytest.raises(BundleReplacedError), not_replaced(bundle):
        (other / "manifest.json").replace(bundle / "manifest.json")
        raise BundleError("fp32.onnx.data has another hash")


def test_weights_that_the_manifest_does_not_name_are_refused(
    pooling_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pooling_bundle / "fp32.onnx"
    model = onnx.load(file, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "elsewhere.data"
    file.write_bytes(model.SerializeToString())
    (pooling_bundle / "elsewhere.data").write_bytes(np.full(3, 7, np.float32).tobytes())
    manifest = Manifest.read(pooling_bundle)
    files = tuple(FileEntry.of(pooling_bundle, entry.path) for entry in manifest.graphs[0].files)
    graph = dataclasses.replace(manifest.graphs[0], files=files)
    dataclasses.replace(manifest, graphs=(graph,)).write(pooling_bundle)
    with pytest.raises(BundleError, match=r"refers to 'elsewhere\.data', which the manifest does"):
        load(pooling_bundle, device="cpu")
    for verb in (["info", "--check"], ["verify"], ["build", "--precision", "fp32"]):
        assert main([*verb, str(pooling_bundle)]) in (1, 2)
        said = capsys.readouterr()
        assert "refers to 'elsewhere.data', which the manifest does not" in said.out + said.err


def nested(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """A graph in a branch of a node, whose constant lies outside."""
    constant = onnx.helper.make_node("Constant", [], ["out"], value=tensor)
    branch = onnx.helper.make_graph([constant], "branch", [], [])
    condition = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return onnx.helper.make_model(onnx.helper.make_graph([condition], "outer", [], []))


def test_external_files_are_found_wherever_a_tensor_stands() -> None:
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    onnx.external_data_helper.set_external_data(tensor, "hidden/weights.bin")
    assert external_files(nested(tensor).SerializeToString()) == {"hidden/weights.bin"}


@pytest.mark.parametrize("damage", [b"\xff" * 20, b"\x3a\xff\x01", b"\x3b\x00"])
def test_what_is_no_graph_is_a_value_error(damage: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        external_files(damage)


def test_a_thread_that_loads_while_another_exports_is_served(
    two_bundles: tuple[Path, Path], export_swap: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """The exporter's own way of replacing a bundle, in this process."""
    place = tmp_path / "served"
    shutil.copytree(two_bundles[0], place)
    ends = threading.Event()

    def swap() -> None:
        while not ends.is_set():
            for source in two_bundles:
                fresh = tmp_path / "fresh"
                shutil.copytree(source, fresh)
                export_swap(fresh, place)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(30):
            with load(place, backend="onnxruntime", device="cpu", threads=1) as model:
                gain = 1 + int(model.manifest.weights.source == "synthetic:1")
                assert model(PIXELS).cls_token[0, 0] == pytest.approx(100 * gain)
    except BundleReplacedError:
        pass  # replaced twice within one load: refused, which is as good
    finally:
        ends.set()
        thread.join()


@pytest.fixture
def export_swap() -> Callable[[Path, Path], None]:
    from dinov2rt.place import swap

    return swap
