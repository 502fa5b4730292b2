"""Opens a graph whose files are those that the manifest names."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.replaced import not_replaced
from dinov2rt.errors import BundleError
from dinov2rt.foreign import quoted
from dinov2rt.runtime.backends.onnx_files import external_files
from dinov2rt.runtime.backends.protocol import Backend


def open_while_hashing(
    bundle: Path, graph: GraphEntry, rebuild: str, open_it: Callable[[Path], Backend]
) -> Backend:
    """Hash the weights in a thread while the library loads them, since both take equally long.

    The graph is hashed before it is parsed. Weights are plain numbers: their size is checked before
    the load, and their hash before the first call.

    Raises:
        BundleError: a file is missing, altered or not in the manifest; the message ends with
            `rebuild`.
        BackendError: the library cannot load the graph.
    """
    graph_file, *weights = graph.files
    with contextlib.ExitStack() as undo:
        with not_replaced(bundle) as watch, ThreadPoolExecutor(1) as pool:
            watch.add(graph.files)
            content = graph_file.read(bundle, rebuild=rebuild)
            _check_external_files(bundle, graph, content)
            for entry in weights:
                entry.locate(bundle, rebuild=rebuild)
            hashing = pool.submit(
                lambda: [entry.check(bundle, rebuild=rebuild) for entry in weights]
            )
            try:
                backend = open_it(bundle / graph_file.path)
                undo.callback(backend.close)
            finally:
                hashing.result()  # altered weights take precedence over an error of the library
        undo.pop_all()
    return backend


def _check_external_files(bundle: Path, graph: GraphEntry, content: bytes) -> None:
    """Refuse a graph that refers to a file that is not among its files in the manifest."""
    name = bundle / graph.files[0].path
    try:
        found = external_files(content)
    except ValueError as error:
        raise BundleError(f"{name} is no ONNX graph ({error}); export the bundle again") from error
    unnamed = found - {file.path for file in graph.files}
    if unnamed:
        raise BundleError(
            f"{name} refers to {quoted(sorted(unnamed)[0])}, which the manifest does not name for "
            "it; export the bundle again"
        )
