"""A small HTTP service around the runtime.

python examples/service.py artifacts/dinov2_vits14_reg --port 8000
curl --data-binary @photo.jpg localhost:8000/features

Requests that wait at the same time are computed as one batch. A request beyond the limits is
refused at once: 413 for a body that is too large, 503 where too many requests are waiting.
"""

import argparse
import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from numpy.typing import NDArray

import dinov2rt


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_batch` images are computed together; `max_waiting` may wait for it."""

    max_batch: int = 8
    max_waiting: int = 64
    max_body_bytes: int = 16 << 20


class Batcher:
    """One thread that computes whatever waits, at most `max_batch` images at a time.

    An image that comes alone is computed alone, without waiting for others. While it is computed,
    the next ones gather.
    """

    def __init__(self, model: dinov2rt.Model, limits: Limits) -> None:
        self._model, self._limits = model, limits
        self._waiting: queue.Queue[tuple[NDArray[np.uint8], Future[Any]] | None]
        self._waiting = queue.Queue(limits.max_waiting)
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        self.batches = 0

    def submit(self, pixels: NDArray[np.uint8]) -> Future[dinov2rt.Features]:
        """The features of one image [H, W, 3], later.

        Raises:
            queue.Full: too many images are waiting.
        """
        future: Future[dinov2rt.Features] = Future()
        self._waiting.put_nowait((pixels, future))
        return future

    def close(self) -> None:
        """Compute what is waiting, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._limits.max_batch:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._compute(batch)
                    return
                batch.append(following)
            self._compute(batch)

    def _compute(self, batch: list[tuple[NDArray[np.uint8], Future[Any]]]) -> None:
        self.batches += 1
        try:
            # A list may hold images of different sizes; each size is one forward pass.
            results = self._model([pixels for pixels, _ in batch], outputs=["cls_token"])
        except Exception as error:
            if len(batch) > 1:  # one bad image must not fail the others
                for each in batch:
                    self._compute([each])
                return
            batch[0][1].set_exception(error)
            return
        for (_, future), features in zip(batch, results, strict=True):
            future.set_result(features)


def create_app(bundle: str, limits: Limits = Limits()) -> FastAPI:
    """The service; the model is loaded and verified before the first request is taken."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with dinov2rt.load(bundle, verify=True) as model:
            model.warm_up([(1, 224, 224)])
            app.state.model, app.state.batcher = model, Batcher(model, limits)
            yield
            app.state.batcher.close()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    def health() -> dict[str, Any]:
        model = app.state.model
        return {
            "status": "ok",
            "variant": model.manifest.name,
            "runs_on": model.summary,
            "batches": app.state.batcher.batches,
        }

    @app.post("/features")
    async def features(request: Request) -> dict[str, Any]:
        body = await _body(request, limits.max_body_bytes)
        try:
            # Decoding takes milliseconds of a core: in a thread, other requests go on.
            pixels = await asyncio.to_thread(
                dinov2rt.load_image, BytesIO(body), preprocess="classification"
            )
            result = await asyncio.wrap_future(app.state.batcher.submit(pixels))
        except dinov2rt.InputError as error:
            raise HTTPException(422, str(error)) from error
        except queue.Full as error:
            raise HTTPException(503, "busy", headers={"Retry-After": "1"}) from error
        return {"cls_token": result.cls_token[0].tolist()}

    return app


async def _body(request: Request, most_bytes: int) -> bytes:
    """The body, read no further than allowed."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise HTTPException(413, f"an image may have {most_bytes} bytes")
    return bytes(body)


def main() -> None:
    """Serve until it is stopped; uvicorn finishes the requests that it has taken."""
    parser = argparse.ArgumentParser(description="serve features over HTTP")
    parser.add_argument("bundle")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-body-bytes", type=int, default=Limits.max_body_bytes)
    given = parser.parse_args()
    limits = Limits(max_body_bytes=given.max_body_bytes)
    uvicorn.run(create_app(given.bundle, limits), host=given.host, port=given.port)


if __name__ == "__main__":
    main()
