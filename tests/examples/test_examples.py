"""Each example is run as a user would, on a real bundle."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.installed import require_for_tests

import dinov2rt
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.export.crops import PHOTOS

EXAMPLES = Path(__file__).parents[2] / "examples"
MAX_BODY_BYTES = 400_000


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in PHOTOS.glob("*.jpg"):
        shutil.copy(photo, folder)
    return folder


def test_features_of_a_folder(bundle_s: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    count = len(list(photos.iterdir()))
    done = run("folder_features.py", bundle_s, photos, out, "--processes", 0)
    assert done.returncode == 0, done.stderr
    assert f"{count} of {count} images are still to be done" in done.stdout
    assert f"{count} rows of fixed_size_list" in done.stdout
    again = run("folder_features.py", bundle_s, photos, out, "--processes", 0)
    assert f"0 of {count} images are still to be done" in again.stdout


def test_retrieval(bundle_s: Path, photos: Path) -> None:
    query = sorted(photos.iterdir())[-1]
    done = run("retrieval.py", bundle_s, photos, query, "--count", 2)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"1.0000  {query}"
    assert not second.startswith("1.0000")


def test_a_bundle_is_checked_at_deployment(bundle_s: Path) -> None:
    sha256 = Manifest.read(bundle_s).weights.sha256
    done = run("check_deployment.py", bundle_s, "--weights-sha256", sha256)
    assert (done.returncode, done.stderr) == (0, "")
    other = run("check_deployment.py", bundle_s, "--weights-sha256", "0", "--most-ms", "1e-9")
    assert other.returncode == 1
    assert "do not serve: the bundle was made from synthetic:0" in other.stdout
    assert "more than 1e-09 ms" in other.stdout
    absent = run("check_deployment.py", bundle_s.parent / "absent")
    assert absent.returncode == 1
    assert absent.stdout.startswith("do not serve: ")


@pytest.fixture(scope="module")
def service(bundle_s: Path) -> Iterator[str]:
    """The address of the running service."""
    require_for_tests("fastapi")
    require_for_tests("uvicorn")
    command = [sys.executable, str(EXAMPLES / "service.py"), str(bundle_s), "--port", "0"]
    command += ["--max-body-bytes", str(MAX_BODY_BYTES)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"running on (http://[\d.]+:\d+)", line):
                yield found[1]
                break
        else:
            pytest.fail(f"the service did not start: {''.join(said)}")
        process.terminate()
        assert process.stderr.read().splitlines()[-1].startswith("INFO:     Finished server")


def ask(address: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(address, data=body)  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return json.load(answer)


def status_of(address: str, body: bytes) -> int:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, body)
    refused.value.close()
    return refused.value.code


def test_the_service_answers_what_the_model_says(service: str, bundle_s: Path) -> None:
    photos = sorted(PHOTOS.glob("*.jpg"))[:2]
    assert ask(f"{service}/health")["status"] == "ok"
    bodies = [photo.read_bytes() for photo in photos] * 4
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: ask(f"{service}/features", body), bodies))
    with dinov2rt.load(bundle_s) as model:
        for photo, answer in zip(photos * 4, answers, strict=True):
            pixels = dinov2rt.load_image(photo, preprocess="classification")
            wanted = model(pixels).cls_token[0]
            np.testing.assert_allclose(answer["cls_token"], wanted, rtol=1e-3, atol=1e-4)
    assert 1 <= ask(f"{service}/health")["batches"] <= len(bodies)


def test_the_service_refuses_what_it_cannot_use(service: str) -> None:
    assert status_of(f"{service}/features", b"no image") == 422
    assert status_of(f"{service}/features", bytes(MAX_BODY_BYTES + 1)) == 413
    assert ask(f"{service}/health")["status"] == "ok"


def test_requests_that_wait_are_one_batch_and_a_bad_one_fails_alone() -> None:
    require_for_tests("fastapi")
    require_for_tests("uvicorn")
    import importlib.util
    import queue
    import threading

    spec = importlib.util.spec_from_file_location("service", EXAMPLES / "service.py")
    assert spec is not None
    assert spec.loader is not None
    service = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(service)
    entered, proceed = threading.Event(), threading.Event()
    batches: list[int] = []

    def model(images: list[Any], *, outputs: list[str]) -> list[Any]:
        assert outputs == ["cls_token"]
        batches.append(len(images))
        entered.set()
        proceed.wait()
        if any(image.shape[0] < 14 for image in images):
            raise dinov2rt.InputError("too small")
        return images

    batcher = service.Batcher(model, service.Limits(max_batch=3, max_waiting=4))
    large, small = np.zeros((14, 14, 3)), np.zeros((1, 14, 3))
    first = batcher.submit(large)
    entered.wait()
    others = [batcher.submit(image) for image in (large, small, large, large)]
    with pytest.raises(queue.Full):
        batcher.submit(large)
    proceed.set()
    assert first.result() is large
    assert [other.exception() is None for other in others] == [True, False, True, True]
    batcher.close()
    assert batches == [1, 3, 1, 1, 1, 1]
