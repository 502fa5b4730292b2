import contextlib
import http.server
import os
import socket
import sys
import termios
import threading
from pathlib import Path

import pytest

from dinov2rt.bundle.variants import find_variant, variants
from dinov2rt.errors import WeightsError
from dinov2rt.export.weights import official
from dinov2rt.export.weights.official import official_checkpoint, official_url

SMALL = find_variant("dinov2_vits14")
PAYLOAD = bytes(range(256)) * 400


class FlakyServer(http.server.ThreadingHTTPServer):
    """Answers with PAYLOAD, after it has used up `failures`: status codes, or "truncate"."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures: dict[str, list[int | str]] = {"HEAD": [], "GET": []}
        self.requests: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        failures = self.server.failures[self.command]
        failure = failures.pop(0) if failures else None
        self.send_response(failure if isinstance(failure, int) else 200)
        if failure != "no length":
            self.send_header("Content-Length", str(len(PAYLOAD)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(PAYLOAD[: len(PAYLOAD) // 2] if failure == "truncate" else PAYLOAD)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(official, "PAUSE_S", 0.01)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def server(monkeypatch):
    with FlakyServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(official, "BASE_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def refusing_url(monkeypatch) -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(official, "BASE_URL", url)
    return url


def test_urls_are_the_published_ones():
    base = "https://dl.fbaipublicfiles.com/dinov2"
    assert [official_url(variant) for variant in variants()] == [
        f"{base}/dinov2_vits14/dinov2_vits14_pretrain.pth",
        f"{base}/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth",
        f"{base}/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        f"{base}/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth",
        f"{base}/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        f"{base}/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth",
        f"{base}/dinov2_vitg14/dinov2_vitg14_pretrain.pth",
        f"{base}/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth",
    ]


@pytest.mark.usefixtures("server")
def test_a_download_lands_in_the_hub_folder_without_a_sound(cache, capsys):
    path = official_checkpoint(find_variant("dinov2_vits14_reg"))
    assert path == cache / "dinov2_vits14_reg4_pretrain.pth"
    assert path.read_bytes() == PAYLOAD
    assert list(cache.iterdir()) == [path]
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("server")
def test_a_terminal_sees_progress(monkeypatch):
    controller, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with os.fdopen(terminal, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        official_checkpoint(SMALL)
    assert b"100%" in read_to_the_end(controller)


def read_to_the_end(controller: int) -> bytes:
    """What a terminal showed, once its other end is closed; Linux then ends reading with EIO."""
    shown = b""
    with os.fdopen(controller, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        while chunk := screen.read(4096):
            shown += chunk
    return shown


@pytest.mark.usefixtures("refusing_url")
def test_a_file_that_is_there_is_used_as_it_is(cache):
    path = cache / "dinov2_vits14_pretrain.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    assert official_checkpoint(SMALL) == path
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "failures",
    [
        {"HEAD": [503], "GET": []},
        {"HEAD": [], "GET": [503, 429]},
        {"HEAD": [], "GET": ["truncate"]},
    ],
)
def test_transient_failures_are_retried(server, failures, cache):
    server.failures = failures
    path = official_checkpoint(SMALL)
    assert path.read_bytes() == PAYLOAD
    assert list(cache.iterdir()) == [path]


def test_a_truncated_file_never_gets_into_the_cache(server, cache):
    server.failures["GET"] = ["truncate"] * 3
    with pytest.raises(WeightsError, match=r"ended after 51200 of 102400 bytes"):
        official_checkpoint(SMALL)
    assert list(cache.iterdir()) == []


def test_a_download_of_unknown_size_is_refused(server, cache):
    server.failures["HEAD"] = ["no length"] * 3
    with pytest.raises(WeightsError, match="the server does not state the size"):
        official_checkpoint(SMALL)
    assert not cache.exists()


def test_it_gives_up_after_three_attempts(server):
    server.failures["HEAD"] = [503] * 9
    with pytest.raises(WeightsError, match=r"\(HTTP Error 503: Service Unavailable\)"):
        official_checkpoint(SMALL)
    assert len(server.requests) == 3


def test_a_missing_file_is_not_asked_for_again(server):
    server.failures["HEAD"] = [404]
    with pytest.raises(WeightsError, match=r"\(HTTP Error 404: Not Found\)"):
        official_checkpoint(SMALL)
    assert server.requests == ["HEAD /dinov2_vits14/dinov2_vits14_pretrain.pth"]


def test_without_a_network_the_message_says_how_to_go_on(refusing_url, cache):
    with pytest.raises(WeightsError) as caught:
        official_checkpoint(SMALL)
    assert str(caught.value) == (
        f"{refusing_url}/dinov2_vits14/dinov2_vits14_pretrain.pth cannot be downloaded "
        "([Errno 111] Connection refused); "
        f"put the file at {cache}/dinov2_vits14_pretrain.pth by hand, "
        "or try things out without a network: --weights synthetic:0"
    )


def test_a_cache_that_cannot_be_written_is_one_line_too(server, cache):
    cache.parent.mkdir()
    cache.write_text("a file where a folder belongs")
    with pytest.raises(WeightsError, match=r"cannot be downloaded \(\[Errno \d+\] [^\n]*$"):
        official_checkpoint(SMALL)
    assert len(server.requests) == 1
