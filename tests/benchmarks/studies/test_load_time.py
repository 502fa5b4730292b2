import os
import sys
from pathlib import Path, PosixPath
from typing import Any

import pytest

from dinov2rt.benchmarks.studies import load_time
from dinov2rt.benchmarks.studies.load_time import main, measure
from dinov2rt.errors import BackendError


class DeadlyBundle(PosixPath):
    """Ends the process that receives it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def sample(load_ms: float) -> load_time._Sample:
    return load_time._Sample("any", 1, load_ms, 10, 20, 30)


@pytest.mark.parametrize(
    ("loads_ms", "median", "least"),
    [([900, 7], 7, 7), ([900, 7, 5, 6], 6, 5), ([1, 7, 5, 6], 6, 5)],
)
def test_the_first_load_is_left_out(
    loads_ms: list[float], median: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = map(sample, loads_ms)
    monkeypatch.setattr(load_time, "_in_fresh_process", lambda *_: next(samples))
    repeats = len(loads_ms) - 1
    (result,) = measure(Path("any"), ["openvino"], repeats=repeats)
    assert (result.load_p50_ms, result.load_min_ms, result.repeats) == (median, least, repeats)


def test_backends_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def in_fresh_process(_: Path, backend: str) -> load_time._Sample:
        asked.append(backend)
        return sample(len(asked))

    monkeypatch.setattr(load_time, "_in_fresh_process", in_fresh_process)
    results = measure(Path("any"), ["openvino", "onnxruntime"], repeats=1)
    assert asked == ["openvino", "onnxruntime"] * 2
    assert [result.load_p50_ms for result in results] == [3, 4]


def test_a_process_that_dies_is_one_line() -> None:
    with pytest.raises(BackendError) as error:
        measure(DeadlyBundle("large"), ["openvino"], repeats=1)
    assert str(error.value) == (
        "the process that loaded large with openvino died, perhaps because memory ran out; "
        "free some, or leave openvino out of --backends"
    )


@pytest.mark.parametrize(
    ("option", "got"),
    [
        ("--backends=openvino,openvino", "repeats 7, backends openvino,openvino; "),
        ("--backends=tensorrt", "repeats 7, backends tensorrt; "),
        ("--repeats=0", "repeats 0, backends openvino,onnxruntime; "),
    ],
)
def test_bad_input_is_one_line(
    option: str, got: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["load_time", "nowhere", option])
    assert main() == 2
    assert capsys.readouterr().err == (
        f"load_time: {got}repeats must be at least 1, and backends some of openvino,onnxruntime, "
        "each once\n"
    )
