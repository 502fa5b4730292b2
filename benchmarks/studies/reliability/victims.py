"""The verbs that are killed: their arguments, and what has to hold on the disk afterwards."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinov2rt.benchmarks.results import BenchmarkRun
from dinov2rt.benchmarks.studies.reliability.small_bundle import (
    age_cuda_graph,
    write_small_bundle,
    write_small_checkpoint,
)
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.tasks.classifier_file import read_classifier
from dinov2rt.errors import Dinov2rtError
from dinov2rt.extraction.reader import read_features
from dinov2rt.optional import require
from dinov2rt.runtime.images import load_image, write_png

_IMAGES = 48
_SYNTHETIC = ("--weights", "synthetic:0")


@dataclass(frozen=True, slots=True)
class Victim:
    """A verb to kill: its arguments for the n-th start, and what has to hold afterwards.

    `check` raises when what lies on the disk is not whole.
    """

    arguments: Callable[[int], Sequence[str]]
    check: Callable[[], None]


def command(arguments: Sequence[str]) -> list[str]:
    """The verb with its `arguments` as a process of its own runs it."""
    return [sys.executable, "-m", "dinov2rt", *arguments]


def finish(arguments: Sequence[str]) -> None:
    """Run the verb to its end.

    Raises:
        Dinov2rtError: it fails.
    """
    done = subprocess.run(command(arguments), capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise Dinov2rtError(f"{' '.join(arguments)} failed by itself: {done.stderr}")


def _write_images(folder: Path) -> Path:
    folder.mkdir()
    for index in range(_IMAGES):
        pixels = np.random.default_rng(index).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        write_png(pixels, folder / f"{index:03}.png")
    return folder


def _rows(features: Path) -> list[Any]:
    return list(read_features(features).to_pylist())


def _run(place: Path) -> Victim:
    """Resumed after each kill; begun anew once it was complete."""
    bundle, images = place / "bundle", _write_images(place / "images")
    write_small_bundle(bundle)
    base = ["run", str(bundle), str(images), "--part-images", "3", "--out"]
    whole = place / "whole.parquet"
    finish([*base, str(whole)])
    wanted = {row["key"]: row for row in _rows(whole)}
    turn = 0

    def out() -> Path:
        return place / f"killed-{turn}.parquet"

    def check() -> None:
        nonlocal turn
        parts = [part for part in out().glob("*.parquet") if part.name[0] not in "._"]
        rows = [row for part in parts for row in _rows(part)]
        if any(row != wanted[row["key"]] for row in rows):
            raise ValueError("rows that differ from a run that was never killed")
        if len(rows) == len(wanted):
            finish([*base, str(out())])
            if _rows(out()) != list(wanted.values()) or list(out().rglob("*.partial")):
                raise ValueError("a resumed run that differs from one that was never killed")
            turn += 1

    return Victim(lambda _: [*base, str(out())], check)


def _predict(place: Path) -> Victim:
    """Resumed after each kill; begun anew once it was complete."""
    bundle, images = _with_head(place), _write_images(place / "images")
    base = ["predict", str(bundle), str(images), "--pictures", "--out"]
    finish([*base, str(place / "whole")])
    wanted = _answers(place / "whole")
    turn = 0

    def out() -> Path:
        return place / f"killed-{turn}"

    def check() -> None:
        nonlocal turn
        for picture in out().rglob("*.png"):
            if picture.name[0] != ".":
                load_image(picture)
        got = _answers(out())
        if any(answer != wanted[name] for name, answer in got.items()):
            raise ValueError("answers that differ from a run that was never killed")
        if len(got) == len(wanted):
            finish([*base, str(out())])
            if list(out().rglob("*.partial")):
                raise ValueError("a resumed run that leaves parts of files")
            turn += 1

    return Victim(lambda _: [*base, str(out())], check)


def _with_head(place: Path) -> Path:
    bundle, weights = place / "bundle", place / "weights"
    write_small_checkpoint(weights, 0)
    head = ["--head", "linear=synthetic:0", "--precision", "fp32"]
    finish(["export", "auto", "--weights", str(weights), *head, "--out", str(bundle)])
    return bundle


def _answers(folder: Path) -> dict[str, Any]:
    """The records that are done, by name."""
    records = sorted((folder / "records").glob("[!.]*.json"))
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in records}


def _train_head(place: Path) -> Victim:
    """Two penalties take turns."""
    bundle, images = place / "bundle", _write_images(place / "images")
    write_small_bundle(bundle)
    features, labels = place / "features.parquet", place / "labels.csv"
    finish(["run", str(bundle), str(images), "--out", str(features)])
    lines = [f"{row['key']},{index % 2}" for index, row in enumerate(_rows(features))]
    labels.write_text("\n".join(["key,label", *lines]), encoding="utf-8")
    out = place / "head.npz"
    base = ["train-head", "--features", str(features), "--labels", str(labels), "--out", str(out)]
    made = []
    for penalty in ("1", "2"):
        finish([*base, "-C", penalty])
        made.append(read_classifier(out).weight)

    def check() -> None:
        if not any(np.array_equal(read_classifier(out).weight, weight) for weight in made):
            raise ValueError("a head that is neither the old nor the new one")

    return Victim(lambda number: [*base, "-C", "12"[number % 2]], check)


def _search(place: Path) -> Victim:
    bundle, images = place / "bundle", _write_images(place / "images")
    write_small_bundle(bundle)
    features, picture = place / "features.parquet", place / "picture.png"
    finish(["run", str(bundle), str(images), "--out", str(features)])
    keys = [row["key"] for row in _rows(features)][:2]
    base = ["search", "--features", str(features), "--picture", str(picture)]
    return Victim(lambda number: [*base, keys[number % 2]], lambda: _check_picture(picture))


def _check_picture(picture: Path) -> None:
    load_image(picture)  # of a PNG that is cut short it says so


def _report(place: Path) -> Victim:
    results = sorted((Path(__file__).resolve().parents[2] / "results").glob("*/vit-s.json"))
    if not results:
        raise Dinov2rtError("no committed results here; run it in the repository")
    pages = [place / "vit-s.md", place / "vit-s.html"]
    made: set[bytes] = set()
    for result in results:
        finish(["report", str(result), "--out", str(place)])
        made |= {page.read_bytes() for page in pages}

    def check() -> None:
        if not {page.read_bytes() for page in pages} <= made:
            raise ValueError("a page that is neither the old nor the new one")

    return Victim(
        lambda number: ["report", str(results[number % len(results)]), "--out", str(place)], check
    )


def _bench(place: Path) -> Victim:
    bundle, out = str(place / "bundle"), place / "result.json"
    finish(["export", "dinov2_vits14", *_SYNTHETIC, "--precision", "fp32", "--out", bundle])
    arguments = ["bench", bundle, "--peers", "none", "--batch", "1", "--size", "28"]
    arguments += ["--seconds", "0.2", "--turns", "1", "--out", str(out)]
    return Victim(lambda _: arguments, lambda: _check_result(out))


def _check_result(out: Path) -> None:
    if not BenchmarkRun.read(out).rows:
        raise ValueError("a result without rows")


def _export(place: Path) -> Victim:
    """Two models of one narrow block take turns."""
    bundle, weights = place / "bundle", [place / f"weights-{seed}" for seed in range(2)]
    for seed, folder in enumerate(weights):
        write_small_checkpoint(folder, seed)
    known = {*weights, bundle}
    base = ["export", "auto", "--precision", "fp32", "--out", str(bundle), "--force", "--weights"]

    def check() -> None:
        _check_bundle(bundle)
        left = [entry.name for entry in place.iterdir() if entry not in known]
        if len(left) > 1:  # what the last one left, and the next removes
            raise ValueError(f"left behind: {left}")

    return Victim(lambda number: [*base, str(weights[number % 2])], check)


def _check_bundle(bundle: Path) -> None:
    for file in Manifest.read(bundle).files:
        file.check(bundle, rebuild="")


def _build(place: Path) -> Victim:
    require("tensorrt_rtx", extra="tensorrt-rtx", purpose="killing build")
    bundle = place / "bundle"
    write_small_checkpoint(place / "weights", 0)
    finish(["export", "auto", "--weights", str(place / "weights"), "--out", str(bundle)])
    base = ["build", str(bundle), "--flavour", "tensorrt-rtx", "--profiles", "224", "--force"]

    def check() -> None:
        _check_bundle(bundle)
        plans = {plan.file.path for plan in Manifest.read(bundle).plans}
        left = {f"plans/{file.name}" for file in (bundle / "plans").iterdir()} - plans
        if len(plans) != 1 or len(left) > 2:  # a partial file, and a plan that is in no manifest
            raise ValueError(f"{len(plans)} plans, left behind: {sorted(left)}")

    return Victim(lambda number: [*base, "--max-batch", str(2 + number % 2)], check)


def _build_cuda(place: Path) -> Victim:
    """Each build replaces the graph of an older version."""
    bundle = place / "bundle"
    write_small_checkpoint(place / "weights", 0)
    finish(["export", "auto", "--weights", str(place / "weights"), "--out", str(bundle)])

    def arguments(_: int) -> list[str]:
        if not (bundle / "cuda.onnx").exists():  # the last build got to its end
            age_cuda_graph(bundle)
        return ["build", str(bundle), "--target", "onnxruntime-cuda"]

    def check() -> None:
        _check_bundle(bundle)
        named = {file.path for file in Manifest.read(bundle).files}
        left = {file.name for file in bundle.glob("*cuda*")} - named
        if len(left) > 3:  # a scratch folder, and two files that are in no manifest
            raise ValueError(f"left behind: {sorted(left)}")

    return Victim(arguments, check)


VICTIMS = {
    "run": _run,
    "search": _search,
    "predict": _predict,
    "train-head": _train_head,
    "report": _report,
    "export": _export,
    "bench": _bench,
    "build": _build,
    "build-cuda": _build_cuda,
}
