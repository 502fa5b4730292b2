"""The executor ray, on a real cluster of two nodes on this machine."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.installed import require_for_tests

from dinov2rt.benchmarks.harness.photo_batch import photo_batch
from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.cli import main
from dinov2rt.errors import InputError
from dinov2rt.extraction.ray_cluster import Cluster
from dinov2rt.extraction.reader import read_features

ray = require_for_tests("ray")

IMAGES, PART_IMAGES = 24, 4

# Ray's own warnings, about its future and about sockets that it leaves to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small crops, and a text file that calls itself an image."""
    folder = tmp_path_factory.mktemp("crops")
    for index, pixels in enumerate(photo_batch(IMAGES, ImageSize(42, 56))):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    (folder / "999.jpg").write_text("no image")
    return folder


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that computes nothing, and two nodes, with a core for one more worker each."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes.workers = [nodes.add_node(num_cpus=2) for _ in range(2)]
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def extract(bundle: Path, crops: Path, out: Path, *executor: str) -> int:
    options = ["--device", "cpu", "--backend", "onnxruntime", "--threads", "1", "--batch", "2"]
    parts = ["--part-images", str(PART_IMAGES), "--out", str(out)]
    return main(["run", str(bundle), str(crops), *options, *parts, *executor])


def assert_same_rows(folder: Path, other: Path) -> None:
    one, two = read_features([folder]), read_features([other])
    assert one.num_rows == IMAGES
    assert one.equals(two)
    errors = [
        sorted(path.name for path in (each / "_errors").iterdir()) for each in (folder, other)
    ]
    assert errors[0] == errors[1] != []


@pytest.mark.slow  # a minute and more, most of it Ray's own
def test_a_cluster_that_loses_a_node_writes_the_same_rows(
    cluster: Any, bundle_s: Path, crops: Path, tmp_path: Path
) -> None:
    out, here = tmp_path / "ray.parquet", tmp_path / "here.parquet"
    killed: list[int] = []

    def kill_a_node_after_the_first_part() -> None:
        ends = time.monotonic() + 240
        while not list(out.glob("part-*")) and time.monotonic() < ends:
            time.sleep(0.01)
        killed.append(len(list(out.glob("part-*"))))
        cluster.remove_node(cluster.workers[0], allow_graceful=False)

    killer = threading.Thread(target=kill_a_node_after_the_first_part)
    killer.start()
    executor = ("--executor", "ray", "--address", cluster.address, "--workers", "2", "--cores", "1")
    assert extract(bundle_s, crops, out, *executor) == 1  # one image is none
    killer.join()
    assert 0 < killed[0] < 7  # in the middle, not before or after
    assert extract(bundle_s, crops, here) == 1
    assert_same_rows(out, here)


def test_a_run_that_one_executor_began_the_other_completes(
    bundle_s: Path, crops: Path, tmp_path: Path
) -> None:
    out, here = tmp_path / "both.parquet", tmp_path / "here.parquet"
    assert extract(bundle_s, crops, here) == 1
    assert extract(bundle_s, crops, out) == 1
    parts = sorted(out.glob("part-*"))
    for part in parts[::2]:
        part.unlink()
    kept = {part: part.stat().st_mtime_ns for part in parts[1::2]}
    assert extract(bundle_s, crops, out, "--executor", "ray", "--cores", "1") == 1
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
    assert_same_rows(out, here)
    assert not ray.is_initialized()


def test_predictions_that_one_executor_began_the_other_completes(
    bundle_heads: Path, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def predict(name: str, *executor: str) -> tuple[int, dict[str, Any]]:
        options = ["--backend", "onnxruntime", "--threads", "1", "--head", "nyu-linear,linear"]
        more = ["--part-images", "8", "--depth-format", "npy", "--out", str(tmp_path / name)]
        argv = ["predict", str(bundle_heads), str(crops), *options, *more, *executor, "--json"]
        status = main(argv)
        return status, json.loads(capsys.readouterr().out)

    status, here = predict("here")
    assert (status, here["images"], here["failed"]) == (1, IMAGES, 1)
    assert predict("both")[0] == 1
    records = sorted((tmp_path / "both" / "records").iterdir())
    for record in records[:16]:
        record.unlink()
    kept = {record: record.stat().st_mtime_ns for record in records[16:]}
    status, both = predict("both", "--executor", "ray", "--cores", "1")
    assert (status, both["failures"]) == (1, here["failures"])
    assert {record: record.stat().st_mtime_ns for record in kept} == kept
    assert not ray.is_initialized()
    assert both["predictions"] == here["predictions"]
    for depth in (tmp_path / "here" / "nyu-linear").iterdir():
        assert depth.read_bytes() == (tmp_path / "both" / "nyu-linear" / depth.name).read_bytes()


def test_no_cluster_is_one_line(
    bundle_s: Path, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = extract(
        bundle_s, crops, tmp_path / "out.parquet", "--executor", "ray", "--address", "127.0.0.1:1"
    )
    err = capsys.readouterr().err
    assert status == 2
    assert "no Ray cluster at 127.0.0.1:1" in err
    assert "ray start --head" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workers", "2"], "--workers is for --executor ray"),
        (["--executor", "spark"], 'allowed are "local", "ray"'),
        (["--executor", "ray", "--workers", "0"], "0 workers"),
    ],
)
def test_bad_usage_is_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "nowhere", "a.png", "--out", str(tmp_path / "o.parquet"), *argv]) == 2
    assert message in capsys.readouterr().err


def test_ray_writes_parts_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.npz"
    assert main(["run", "nowhere", "a.png", "--out", str(out), "--executor", "ray"]) == 2
    assert "give --out OUT.parquet" in capsys.readouterr().err


def test_a_cluster_has_workers_and_cores() -> None:
    with pytest.raises(InputError, match="allowed are from 1 on"):
        Cluster(workers=1, cores=0)
