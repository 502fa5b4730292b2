"""The whole path on this machine, without a network: `make demo`."""

import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinov2rt.analysis.pca import draw_demo, patch_pca, seen_by_model
from dinov2rt.analysis.prediction_pictures import draw_overview
from dinov2rt.bundle.geometry import Snap
from dinov2rt.bundle.variants import find_variant
from dinov2rt.engines.build import build_plan
from dinov2rt.engines.options import BuildOptions
from dinov2rt.errors import BackendError, MissingDependencyError, PlanWarning
from dinov2rt.export.crops import PHOTOS
from dinov2rt.export.exporter import export_bundle
from dinov2rt.export.heads.checkpoint import HeadSource
from dinov2rt.export.options import ExportOptions
from dinov2rt.runtime.gpu.cuda import find_gpu
from dinov2rt.runtime.images import load_image, write_png
from dinov2rt.runtime.model import Model, load
from dinov2rt.runtime.predictions import Depth

_VARIANT = "dinov2_vits14"
_WEIGHTS = "synthetic:0"
_HEAD = "nyu-linear4"
_CAPTION = (
    "From the left: features of the patches (black: background), attention of the CLS token, the "
    "photo, and its depth in metres. Backbone and head have synthetic weights: none of this means "
    "anything."
)
_PHOTO = PHOTOS / "astronaut.jpg"
_TARGET = "sm80"
_TIMED_CALLS = 20
_MIB = 2**20

Row = tuple[str, str]


def main(out: Path = Path("artifacts/demo")) -> int:
    """Export, build, load, verify, run, time and draw; 0 when the accuracy check passed."""
    rows: list[Row] = []
    bundle, picture = out / _VARIANT, out / "astronaut.png"
    options = ExportOptions(attention=True, heads=(HeadSource(_HEAD, _WEIGHTS),))
    with _step(rows, "export", f"{_VARIANT} and {_HEAD} from {_WEIGHTS} into {bundle}"):
        export_bundle(find_variant(_VARIANT), _WEIGHTS, bundle, options, force=True, progress=_say)
    _build(rows, bundle)
    with _step(rows, "load", f"torch-free runtime on {bundle}"):
        model = load(bundle)
    with model:
        with _step(rows, "verify", "against the eager PyTorch model's golden outputs"):
            report = model.verify()
        rows.append(("accuracy", str(report)))
        pixels = load_image(_PHOTO)
        rows.append(("latency", _latency(model, pixels)))
        _draw(model, pixels, picture)
    rows.append(("picture", f"{picture}: features, attention, photo and depth, all synthetic"))
    _print_table(rows)
    return 0 if report else 1


def _build(rows: list[Row], bundle: Path) -> None:
    """Build an A100 plan, which needs no GPU, and report its state."""
    try:
        with _step(rows, "build", f"FP16 TensorRT plan for {_TARGET}, no GPU needed"):
            plan = build_plan(bundle, BuildOptions(target=_TARGET, flavour="tensorrt-rtx"), _say)
    except (BackendError, MissingDependencyError) as error:
        rows.append(("plan", f"not built: {error}"))
        return
    profiles = ", ".join(
        f"{entry.name} {entry.shapes} with {entry.scratch_bytes / _MIB:.0f} MiB of scratch"
        for entry in plan.profiles
    )
    rows += [
        ("plan", f"{plan.file.size_bytes / _MIB:.0f} MiB, {plan.flavour} {plan.version}"),
        ("profiles", profiles),
        ("attention", f"{plan.fused_attention} blocks, one fused kernel each, in every profile"),
        ("", _standing(bundle)),
    ]


def _standing(bundle: Path) -> str:
    """Whether the plan was compared with eager: only a GPU of its target can do that."""
    try:
        gpu = find_gpu()
    except (BackendError, MissingDependencyError):
        gpu = None
    if gpu is None or gpu.target != _TARGET:
        return f"unverified: no {_TARGET} GPU here"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)  # that it is unverified is what we are at
        with load(bundle, backend="tensorrt") as model:
            return str(model.verify())


def _draw(model: Model, pixels: NDArray[np.uint8], picture: Path) -> None:
    """Features, attention and depth of one photo, beside it."""
    features, depth = model(pixels), model.predict(pixels)
    seen = seen_by_model(pixels, Snap.CROP, model.architecture.patch_size)
    colours = patch_pca([features.patch_tokens[0]])[0]
    if not isinstance(depth, Depth):
        raise TypeError(f"{_HEAD} does not answer with depth")
    cut = replace(depth, metres=depth.metres[:, : len(seen), : seen.shape[1]])
    overview = draw_overview(seen, colours, features.attention[0], cut, _CAPTION)
    write_png(overview, picture)
    draw_demo(seen, features.patch_tokens[0], picture.with_stem(f"{picture.stem}-features"))


def _latency(model: Model, pixels: NDArray[np.uint8]) -> str:
    crop = pixels[:224, :224]
    model(crop)
    times_ms = []
    for _ in range(_TIMED_CALLS):
        started = time.perf_counter()
        model(crop)
        times_ms.append(1e3 * (time.perf_counter() - started))
    return (
        f"{statistics.median(times_ms):.1f} ms median, {min(times_ms):.1f} ms least, of "
        f"{_TIMED_CALLS} calls at batch 1, 224x224, on this machine as busy as it is"
    )


@contextmanager
def _step(rows: list[Row], name: str, what: str) -> Iterator[None]:
    _say(f"{name}: {what}")
    started = time.perf_counter()
    yield
    rows.append((name, f"{time.perf_counter() - started:.1f} s, {what}"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_table(rows: list[Row]) -> None:
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    print(
        "\nThe weights are synthetic: they exercise the model as trained ones would, but these "
        "features\nand this picture mean nothing. For real ones: "
        "make export VARIANT=dinov2_vits14 WEIGHTS=official"
    )


if __name__ == "__main__":
    raise SystemExit(main())
