"""Opens a graph whose files are those that the manifest names."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dinov2rt.bundle.entries import GraphEntry
from dinov2rt.bundle.replaced import not_replaced
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
            graph.check_references(bundle, content)
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
