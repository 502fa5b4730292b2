import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.installed import require_for_tests

from dinov2rt.bundle.manifest import MANIFEST_NAME, Manifest
from dinov2rt.bundle.remote import CACHE_VARIABLE, local_bundle
from dinov2rt.cli import main
from dinov2rt.errors import BundleError
from dinov2rt.runtime.model import load

fsspec = require_for_tests("fsspec")

URL = "memory://models/pooling"
PIXELS = np.zeros((1, 28, 28, 3), np.uint8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(pooling_bundle: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """A file system that is not this machine's, with a bundle at `URL`."""
    files = fsspec.filesystem("memory")
    files.put(str(pooling_bundle), "/models/pooling", recursive=True)
    yield files
    files.rm("/models", recursive=True)


def weights_file(bundle: Path) -> str:
    return Manifest.read(bundle).graphs[0].files[0].path


@pytest.mark.usefixtures("store")
def test_a_url_gives_the_features_of_the_folder(pooling_bundle: Path, cache: Path) -> None:
    with load(URL, device="cpu") as there, load(pooling_bundle, device="cpu") as here:
        assert there.path.parent == cache
        for name, value in here(PIXELS).outputs.items():
            np.testing.assert_array_equal(there(PIXELS).outputs[name], value)


def test_files_are_copied_once(
    pooling_bundle: Path, store: fsspec.AbstractFileSystem, cache: Path
) -> None:
    first = local_bundle(URL)
    store.rm(f"/models/pooling/{weights_file(pooling_bundle)}")
    assert local_bundle(URL) == first
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_a_bundle_that_changed_behind_its_url_is_copied_anew(
    store: fsspec.AbstractFileSystem, cache: Path
) -> None:
    first = local_bundle(URL)
    manifest = store.cat_file(f"/models/pooling/{MANIFEST_NAME}")
    store.pipe_file(f"/models/pooling/{MANIFEST_NAME}", manifest + b"\n")
    assert local_bundle(URL) != first
    assert len(list(cache.iterdir())) == 2


def test_an_altered_file_is_refused_and_nothing_of_it_stays(
    pooling_bundle: Path, store: fsspec.AbstractFileSystem, cache: Path
) -> None:
    file = f"/models/pooling/{weights_file(pooling_bundle)}"
    content = store.cat_file(file)
    store.pipe_file(file, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=rf"{URL}: .*SHA-256.*the manifest says") as caught:
        load(URL, device="cpu")
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "url", ["memory://models/nothing", "nosuchprotocol://models/pooling", "file:///nowhere/at/all"]
)
def test_what_cannot_be_read_is_one_line(url: str) -> None:
    with pytest.raises(BundleError, match=f"{url} cannot be copied here") as caught:
        local_bundle(url)
    assert "check the URL" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("store", "cache")
def test_a_pickled_model_goes_back_to_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(URL, device="cpu") as model:
        pickled = pickle.dumps(model)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "on another machine"))
    with pickle.loads(pickled) as again:
        assert again.path.parent == tmp_path / "on another machine"


@pytest.mark.usefixtures("store", "cache")
def test_verbs_take_urls(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", URL]) == 0
    assert main(["info", "memory://models/nothing"]) == 2
    assert "cannot be copied here" in capsys.readouterr().err
