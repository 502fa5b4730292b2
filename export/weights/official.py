"""The official checkpoints: where they are published, and where they are kept."""

import http.client
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch

from dinov2rt.bundle.variants import Variant
from dinov2rt.errors import WeightsError
from dinov2rt.place import scratch_beside

BASE_URL = "https://dl.fbaipublicfiles.com/dinov2"
ATTEMPTS = 3
PAUSE_S = 1.0
TIMEOUT_S = 30.0

_TOO_MANY_REQUESTS = 429
_SERVER_ERRORS = range(500, 600)


def official_url(variant: Variant) -> str:
    """The URL of the official checkpoint of `variant`.

    Source: `dinov2/hub/backbones.py`. Only the file's name mentions registers, not the folder's.
    """
    folder = variant.name.removesuffix("_reg")
    registers = f"_reg{variant.num_registers}" if variant.num_registers else ""
    return f"{BASE_URL}/{folder}/{folder}{registers}_pretrain.pth"


def official_checkpoint(variant: Variant) -> Path:
    """The official checkpoint in the folder where `torch.hub` keeps its own, downloaded if absent.

    Raises:
        WeightsError: it cannot be downloaded; the message says where to put the file by hand.
    """
    return download_once(official_url(variant), "--weights synthetic:0")


def download_once(url: str, way_out: str) -> Path:
    """The file at `url` in the folder where `torch.hub` keeps its own, downloaded if absent.

    Raises:
        WeightsError: it cannot be downloaded; the message says where to put the file by hand, and
            gives `way_out`, options that need no network.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        try:
            _download_with_retries(url, path)
        except (OSError, http.client.HTTPException) as error:
            raise WeightsError(
                f"{url} cannot be downloaded ({_reason(error)}); put the file at {path} by hand, "
                f"or try things out without a network: {way_out}"
            ) from error
    return path


def _download_with_retries(url: str, path: Path) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _download(url, path)
        except (OSError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS or not _is_transient(error):
                raise
            time.sleep(PAUSE_S)
        else:
            return


def _download(url: str, path: Path) -> None:
    # torch.hub takes the early end of a response for the end of the file, so the size is asked
    # for beforehand and only a whole file gets its name.
    expected = _size_at(url)
    with scratch_beside(path) as folder:
        partial = folder / path.name
        torch.hub.download_url_to_file(url, str(partial), progress=sys.stderr.isatty())
        size = partial.stat().st_size
        if size != expected:
            raise ConnectionError(f"the transfer ended after {size} of {expected} bytes")
        partial.replace(path)


def _size_at(url: str) -> int:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 (always one of our own URLs)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
        length = response.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise urllib.error.URLError("the server does not state the size")
    return int(length)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code == _TOO_MANY_REQUESTS or error.code in _SERVER_ERRORS
    network = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException)
    return isinstance(error, network)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return str(error.reason)
    return str(error) or type(error).__name__
