"""The loaded model: images in, features out."""

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.accuracy import AccuracyReport
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.geometry import Snap, SnapName
from dinov2rt.bundle.golden import Golden, GoldenCase
from dinov2rt.bundle.heads import HeadEntry
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.bundle.precision import Precision, PrecisionName
from dinov2rt.bundle.remote import is_url, is_variant_name, local_bundle
from dinov2rt.bundle.replaced import not_replaced
from dinov2rt.bundle.signature import is_task_output
from dinov2rt.bundle.variants import Variant, variant_of
from dinov2rt.errors import AccuracyError, BundleError, BundleReplacedError, InputError, PlanWarning
from dinov2rt.foreign import quoted
from dinov2rt.runtime.backends.modes import BackendName, DeviceName
from dinov2rt.runtime.backends.protocol import Backend, PhaseTimer, ShapePreparer
from dinov2rt.runtime.embedding import Pool, PoolName, embed
from dinov2rt.runtime.features import Features, gathered
from dinov2rt.runtime.gpu.phases import Phases
from dinov2rt.runtime.inputs import ImageGroup
from dinov2rt.runtime.loading import Loader
from dinov2rt.runtime.passes import Passes
from dinov2rt.runtime.predict import Request, predict_all
from dinov2rt.runtime.predictions import Prediction, Predictions
from dinov2rt.runtime.preprocess import Preprocess
from dinov2rt.runtime.recipes import RecipeName, check_recipe, official
from dinov2rt.runtime.selection import Choice, select, worth_asking_for
from dinov2rt.runtime.verification import compare_all, record_verification, why_unverified

if TYPE_CHECKING:
    from PIL.Image import Image

    from dinov2rt.runtime.loading import ImageLike

_WARM_UP_CALLS = 3
"""On a GPU, the second call of a shape captures its CUDA graph; the third runs it."""

_PAUSE_S = 0.05

DEFAULT_MAX_PIXELS = 2**22
"""The default limit on pixels of one forward pass: one image of 2048 × 2048."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The arguments of `load`, so that another process can load the same model."""

    device: DeviceName | str = "auto"
    backend: BackendName | None = None
    precision: Precision | PrecisionName | None = None
    threads: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS


@dataclass(slots=True, eq=False)
class Model:
    """A loaded bundle. Made by `load`; a context manager; safe to call from several threads.

    A pickled model holds the bundle's path or URL and the options; unpickling loads it again.
    `path` is the bundle's folder on this machine.
    """

    path: Path
    manifest: Manifest
    options: LoadOptions
    _choice: Choice = field(repr=False)
    _location: str = field(repr=False)

    @property
    def architecture(self) -> Architecture:
        """The architecture of the backbone."""
        return self.manifest.architecture

    @property
    def variant(self) -> Variant | None:
        """The variant, one of the eight backbones, or None for another architecture."""
        return variant_of(self.manifest.architecture)

    @property
    def graph(self) -> GraphEntry:
        """The graph that is loaded."""
        return self._choice.graph

    @property
    def runs_on(self) -> str:
        """Library, version and device of the backend, such as "openvino 2026.2.0, cpu"."""
        return self._backend.description

    @property
    def summary(self) -> str:
        """Bundle, precision and backend in a line, the first of `describe`."""
        return f"{self.manifest.name} {self.graph.precision} on {self.runs_on}"

    @property
    def prepares_shapes(self) -> bool:
        """Whether `warm_up` compiles the graph for each shape, which makes later calls faster."""
        return isinstance(self._backend, ShapePreparer)

    @property
    def _backend(self) -> Backend:
        return self._choice.backend

    @property
    def _passes(self) -> Passes:
        return Passes(self.graph, self.architecture, self._backend, self.options.max_pixels)

    @overload
    def __call__(
        self,
        images: "NDArray[Any] | str | Path | bytes | Image",
        *,
        outputs: Sequence[str] | None = None,
        snap: Snap | SnapName = "crop",
        preprocess: Preprocess | str = "native",
        device_outputs: bool = False,
    ) -> Features: ...

    @overload
    def __call__(
        self,
        images: "Sequence[ImageLike]",
        *,
        outputs: Sequence[str] | None = None,
        snap: Snap | SnapName = "crop",
        preprocess: Preprocess | str = "native",
        device_outputs: bool = False,
    ) -> Features | list[Features]: ...

    def __call__(
        self,
        images: "ImageLike | Sequence[ImageLike]",
        *,
        outputs: Sequence[str] | None = None,
        snap: Snap | SnapName = "crop",
        preprocess: Preprocess | str = "native",
        device_outputs: bool = False,
    ) -> Features | list[Features]:
        """Features of an image, of a batch, or of a list of images of any sizes, in order.

        Args:
            images: uint8 [B, H, W, 3] or [H, W, 3], RGB; a path, the bytes of an image file, or a
                Pillow image, which `load_image` reads; or a list of any of these, [H, W, 3] each.
                Files of more than `max_pixels` are scaled to fit, with a `ScaledWarning`; arrays
                are refused. A bundle exported with `--input normalized` also takes float32
                [B, 3, H, W]. TensorRT plans and the fused graph of ONNX Runtime CUDA also take the
                graph's own input on their GPU (DLPack or `__cuda_array_interface__`: torch, CuPy,
                JAX); do not overwrite that input until you have consumed an output.
            outputs: names of the graph's outputs to return, e.g. `["cls_token"]`; None means all
                except the outputs of heads. Other outputs are not copied.
            snap: how sides become multiples of the patch: "crop" (drop pixels at the bottom and at
                the right, as in the model card), "center-crop", "pad" (zeros after normalization,
                centred, as for the depth heads), "resize" (to the nearest multiple), or "error".
            preprocess: how images are scaled and cropped first, see `load_image`.
            device_outputs: leave the outputs of these backends on the GPU: each is a `DeviceArray`
                for DLPack. The consumer's stream waits for it; the host does not.

        Returns:
            `Features` with B images. For a list, one `Features` with all images if their grids are
            equal, otherwise a list of `Features` with B = 1 each.

        Raises:
            InputError: the images or arguments cannot be used.

        Example:
            >>> pixels = np.zeros((2, 224, 224, 3), np.uint8)
            >>> model(pixels).patch_tokens.shape
            (2, 16, 16, 384)
            >>> model(["photos/a.jpg", "photos/b.jpg"], preprocess="classification")
            Features(cls_token [2, 384] float32, register_tokens [2, 4, 384] float32, ...)
            >>> model("photos/a.jpg", outputs=["cls_token"]).cls_token.dtype
            dtype('float32')
        """
        names = self._output_names(outputs)
        loader = self._loader(preprocess, Snap.parse(snap))
        images = loader.load_all(images)
        loader.warn()
        passes, registers = self._passes, self.architecture.num_registers
        groups = passes.groups(images, Snap.parse(snap))
        if device_outputs:
            passes.check_gpu("device_outputs")
        results = []
        for group in groups:
            arrays = passes.outputs(group, names, on_device=device_outputs)
            results.append((group, Features(arrays, group.grid, registers)))
        return gathered(results)

    def embed(
        self,
        images: "ImageLike | Iterable[ImageLike]",
        *,
        batch_size: int = 8,
        pool: Pool | PoolName = "cls",
        normalize: bool = True,
        snap: Snap | SnapName = "crop",
        preprocess: Preprocess | str = "native",
    ) -> NDArray[np.float32]:
        """One vector per image, [N, D] in the order of `images`, for search and classification.

        Images are read lazily, decoded by threads, and batched by size. An iterator may have any
        length, since memory grows only by the vectors.

        Args:
            images: paths, bytes, Pillow images, arrays [H, W, 3], in any mixture; one or many.
            batch_size: the largest batch of a forward pass.
            pool: "cls", "patch_mean", or "cls+patch_mean" (which gives [N, 2·D]).
            normalize: scale each vector to length 1, so that a dot product is a cosine.
            snap: see `__call__`.
            preprocess: see `__call__`.

        Raises:
            InputError: an image cannot be used; the message has its position. For a whole folder,
                `extract_features` continues after such images.

        Example:
            >>> vectors = model.embed(sorted(Path("photos").glob("*.jpg")))
            >>> vectors.shape
            (3, 384)
            >>> cosines = vectors @ vectors[0]  # of the first photo to all
            >>> int(cosines.argmax())
            0
        """
        pooled, loader = Pool.parse(pool), self._loader(preprocess, Snap.parse(snap))

        def call(batch: NDArray[Any]) -> Features:
            return self(batch, outputs=pooled.outputs, snap=snap)

        vectors = embed(call, images, loader, pooled, batch_size=batch_size, normalize=normalize)
        loader.warn()
        return vectors

    def _loaded(self, images: Any) -> Any:
        """`images`, with files loaded as arrays."""
        loader = self._loader("native", Snap.CROP)
        loaded = loader.load_all(images)
        loader.warn()
        return loaded

    def _loader(self, preprocess: Preprocess | str, snap: Snap) -> Loader:
        steps = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
        most, side = self.options.max_pixels, self.architecture.patch_size
        return Loader(steps, lambda size: size.fitted(most, snap, side))

    def predict(
        self,
        images: "ImageLike | Sequence[ImageLike]",
        *,
        heads: str | Sequence[str] | None = None,
        snap: Snap | SnapName | None = None,
        scores: bool = False,
        recipe: RecipeName = "single",
        device_outputs: bool = False,
    ) -> Prediction | Predictions | list[Prediction] | list[Predictions]:
        """Predictions of the bundle's heads: classes of images, depth, classes of pixels.

        Args:
            images: see `__call__`.
            heads: names of heads, one or several; None means all.
            snap: how sides become multiples of the patch. By default, as in each head's official
                evaluation: classifiers drop pixels at the bottom and at the right; dense heads pad,
                and predict at the image's own size. If both kinds are requested, this takes two
                passes, unless all sides are multiples of the patch.
            scores: return segmentations with the head's own scores [B, K, h, w].
            recipe: "single" is one pass over the unmodified pixels. "official" reproduces the
                heads' evaluations: depth averaged with the mirrored image's, segmentation with a
                sliding window (and several scales and mirroring for `ms` heads), classification of
                the resized and cropped image. It takes uint8 pixels, and many passes.
            device_outputs: see `__call__`.

        Returns:
            `Classification`, `Depth` or `Segmentation` with B images for one head; `Predictions`,
            which maps the heads' names to these, for several heads. For a list of images, a list of
            the same with B = 1.

        Raises:
            InputError: images or arguments cannot be used, or the bundle has no such head.

        Example:
            >>> with dinov2rt.load("artifacts/heads") as model:
            ...     answers = model.predict("photos/a.jpg", heads=["linear", "nyu-linear"])
            >>> [(best.index, best.name) for best in answers.classification.top(1)[0]]
            [(..., '...')]
            >>> answers["nyu-linear"].metres.shape  # of the photo's own size
            (1, 90, 120)
        """
        images = self._loaded(images)
        request = Request.of(self.manifest.heads, heads, snap, scores=scores)
        check_recipe(recipe, request, device_outputs=device_outputs)
        passes, side = self._passes, self.architecture.patch_size
        if device_outputs:
            passes.check_gpu("device_outputs")

        def run(group: ImageGroup, names: tuple[str, ...]) -> dict[str, Any]:
            return passes.outputs(group, names, on_device=device_outputs)

        def ask(pixels: NDArray[np.uint8], head: HeadEntry, with_scores: bool) -> Any:
            alone = Request((head,), None, with_scores)
            answered: Any = predict_all(pixels, alone, passes.groups, run, side)
            return answered[head.name]

        if recipe == "official":
            answers = official(images, request.heads, ask)
        else:
            answers = predict_all(images, request, passes.groups, run, side)
        if len(request.heads) > 1:
            return answers
        (name,) = (head.name for head in request.heads)
        if isinstance(answers, list):
            return [each[name] for each in answers]
        return answers[name]

    def warm_up(self, shapes: Iterable[tuple[int, int, int]]) -> None:
        """Prepare batches of these shapes, so that their first call is as fast as later calls.

        Call it in a service before it accepts requests. On a GPU, memory is allocated and a CUDA
        graph is captured for each shape; eight are kept, and the least recently used is evicted.

        OpenVINO compiles the graph for each shape alone, which takes the time of a load and about
        as much memory as the weights; four are kept. On CPUs with AVX-512 and without AMX, the
        first shape may take twice as much. Padded images (`snap="pad"`) do not profit.

        Args:
            shapes: batch, height and width in pixels, e.g. `[(1, 224, 224), (32, 224, 224)]`.

        Raises:
            InputError: a shape cannot be run.

        Example:
            >>> model.warm_up([(1, 224, 224)])
        """
        for batch, height, width in shapes:
            images = np.zeros((batch, height, width, 3), dtype=np.uint8)
            self._prepare(images)
            for _ in range(_WARM_UP_CALLS):
                self(images)

    def _prepare(self, images: NDArray[np.uint8]) -> None:
        if not isinstance(self._backend, ShapePreparer):
            return
        for feed in self._feeds(images):
            self._backend.prepare(feed)

    def _feeds(self, images: Any) -> list[dict[str, NDArray[Any]]]:
        """The inputs of the graph for each pass that `images` take."""
        passes = self._passes
        return [feed for group in passes.groups(images, Snap.CROP) for feed in passes.feeds(group)]

    def phases(
        self, images: "ImageLike | Sequence[ImageLike]", *, outputs: Sequence[str] | None = None
    ) -> Phases | None:
        """The GPU time of one call in its phases, in ms; None if this backend does not time them.

        TensorRT plans and the fused graph of ONNX Runtime CUDA do. Call `warm_up` before: the first
        calls of a shape allocate memory and capture a CUDA graph.

        Args:
            images: in host memory, see `__call__`; one batch of one size.
            outputs: names of the outputs that are copied to the host, see `__call__`.

        Raises:
            InputError: the images cannot be used, or take several passes.
        """
        backend = self._choice.plan or self._backend
        if not isinstance(backend, PhaseTimer):
            return None
        feeds = self._feeds(self._loaded(images))
        if len(feeds) != 1:
            raise InputError(
                f"these images take {len(feeds)} passes, and the phases of one are timed; pass "
                "one batch of one size, within `max_pixels` and the plan's profiles"
            )
        return backend.phases(feeds[0], self._output_names(outputs))

    def map(
        self,
        batches: Iterable[Any],
        *,
        outputs: Sequence[str] | None = None,
        snap: Snap | SnapName = "crop",
    ) -> Iterator[Features | list[Features]]:
        """Features of the batches, in order; see `__call__`.

        The next batch is read while one runs, and with a TensorRT plan, copies overlap with
        computation. Only a few batches are in memory at a time.

        Example:
            >>> batches = (np.zeros((2, 56, 56, 3), np.uint8) for _ in range(3))
            >>> [len(features) for features in model.map(batches)]
            [2, 2, 2]
        """
        calls = self._backend.concurrent_calls
        pending: deque[Future[Features | list[Features]]] = deque()
        pool = ThreadPoolExecutor(calls)
        try:
            for batch in batches:
                pending.append(pool.submit(self, batch, outputs=outputs, snap=snap))
                if len(pending) > calls:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def verify(self, cases: Sequence[GoldenCase] | None = None) -> AccuracyReport:
        """Compare this model with eager float32 outputs, by default the bundle's golden outputs.

        No torch is needed, because the eager model's outputs were stored at export. If a TensorRT
        plan passes on the golden outputs, the manifest records it as verified on this GPU.

        Raises:
            BundleError: the golden outputs are missing, altered, or of another export.

        Example:
            >>> report = model.verify()
            >>> bool(report), report.relative_l2 < 1e-5
            (True, True)
            >>> print(report)
            passed: fp32 on ..., worst is ...
        """
        # Only the plan: its fallback graph must not run in its place.
        backend = self._choice.plan or self._backend
        if cases is not None:
            return compare_all(backend, self.graph, cases)
        rebuild = self.manifest.rebuild_command(self.path)
        content = self.manifest.golden.read(self.path, rebuild=rebuild)
        golden = Golden.parse(content, str(self.path / self.manifest.golden.path))
        golden.check(self.manifest.normalization, rebuild)
        report = compare_all(backend, self.graph, golden.cases)
        if report:
            self._record_verification(report)
        return report

    def describe(self) -> str:
        """The backend of this model, why better ones do not run, and faster ones on request.

        Example:
            >>> print(model.describe())
            dinov2_vits14_reg fp32 on openvino ...
        """
        lines = [self.summary]
        lines += filter(None, [self._why_unverified()])
        lines += [f"passed over {name}: {reason}" for name, reason in self._choice.passed_over]
        lines += worth_asking_for(self.manifest, self._choice)
        return "\n".join(lines)

    def close(self) -> None:
        """Free the backend; the model cannot be called afterwards."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        self.close()
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        return _reload, (self._location, self.options)

    def _output_names(self, outputs: Any) -> tuple[str, ...]:
        if outputs is None:  # outputs of heads are for `predict`
            return tuple(name for name in self.graph.outputs if not is_task_output(name))
        several = isinstance(outputs, Iterable) and not isinstance(outputs, str)
        names: tuple[str, ...] = tuple(outputs) if several else (outputs,)
        unknown = [name for name in names if name not in self.graph.outputs]
        if unknown or not names:
            raise InputError(
                f"outputs {quoted(list(names))} asked for; this bundle has "
                f"{', '.join(self.graph.outputs)}"
            )
        return names

    def _why_unverified(self) -> str | None:
        """Why the plan's outputs are unverified here, or None if they are verified."""
        plan = self._choice.plan
        return why_unverified(self.manifest, plan.entry, plan.gpu) if plan else None

    def _record_verification(self, report: AccuracyReport) -> None:
        """Record in the manifest that the plan passed here, unless that is recorded already."""
        plan = self._choice.plan
        if plan is None or self._why_unverified() is None:
            return
        try:
            self.manifest = record_verification(self.path, plan.entry, plan.gpu, report)
        except BundleError as error:  # the verification itself passed
            warnings.warn(f"passed, but not recorded: {error}", PlanWarning, stacklevel=3)


def load(
    bundle: str | Path,
    *,
    device: DeviceName | str = "auto",
    backend: BackendName | None = None,
    precision: Precision | PrecisionName | None = None,
    threads: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    verify: bool = False,
) -> Model:
    """Load a bundle.

    Args:
        bundle: its directory; the name of a variant, such as "dinov2_vits14_reg", whose bundle is
            taken from the cache, or exported into it where torch is installed; or any URL that
            fsspec reads, e.g. s3://models/dinov2_vits14, whose files are copied to this machine
            once. The cache is `$DINOV2RT_CACHE`, or ~/.cache/dinov2rt.
        device: "auto" (the best that runs here), "cpu", "cuda", or a GPU by number, "cuda:1".
        backend: "openvino", "onnxruntime" or "tensorrt"; None chooses the best.
        precision: the precision of the graph, e.g. "fp32"; None chooses the best.
        threads: number of threads of the CPU backend; None leaves it to the backend.
        max_pixels: the most pixels (B · H · W) of one forward pass. A larger batch runs in
            several passes; a single larger image is refused, since memory grows with it.
        verify: compare with the golden outputs before returning.

    Raises:
        BundleError: there is no bundle, it cannot be copied, or a file is missing, altered or of a
            newer version.
        BackendError: the requested device, backend or precision cannot run here.
        InputError: an option has an unknown value.
        AccuracyError: `verify` is set and failed.

    Example:
        >>> with dinov2rt.load("artifacts/dinov2_vits14_reg", device="cpu") as model:
        ...     features = model("photos/a.jpg")
        >>> features.cls_token.shape
        (1, 384)
    """
    if is_variant_name(bundle):
        bundle = local_bundle(bundle)
    location = str(bundle) if is_url(bundle) else str(Path(bundle).absolute())
    model = _reload(location, LoadOptions(device, backend, precision, threads, max_pixels))
    if verify:
        report = model.verify()
        if not report:
            model.close()
            raise AccuracyError(f"{bundle}: {report}")
    elif (reason := model._why_unverified()) is not None:
        warnings.warn(f"{bundle}: {reason}", PlanWarning, stacklevel=2)
    return model


def _reload(location: str, options: LoadOptions) -> Model:
    _check_count("max_pixels", options.max_pixels)
    if options.threads is not None:
        _check_count("threads", options.threads)
    path = local_bundle(location)
    try:
        return _load_once(location, path, options)
    except BundleReplacedError:
        time.sleep(_PAUSE_S)  # a rename takes two steps, between which there is no bundle
        return _load_once(location, path, options)


def _load_once(location: str, path: Path, options: LoadOptions) -> Model:
    """Read the manifest and open its files; fail if the bundle is replaced meanwhile."""
    with contextlib.ExitStack() as opened:
        with not_replaced(path) as watch:
            manifest = Manifest.read(path)
            watch.add(manifest.files)
            choice = select(
                path,
                manifest,
                device=options.device,
                backend=options.backend,
                precision=options.precision,
                threads=options.threads,
            )
            opened.callback(choice.backend.close)
        opened.pop_all()
    return Model(path, manifest, options, choice, location)


def _check_count(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise InputError(f"{name}={quoted(value)}; allowed is a whole number from 1")
