from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.errors import BackendError, PlanInputError, PlanWarning
from dinov2rt.runtime.backends.fallback import FallbackBackend
from dinov2rt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from dinov2rt.runtime.backends.protocol import Backend


class PickyBackend:
    """Takes images of 28x28 alone, as a plan with one profile would, and answers with ones."""

    description = "picky"
    concurrent_calls = 2
    reads_gpu_arrays = True
    closed = False

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, device_outputs: bool = False
    ) -> dict[str, Any]:
        if inputs["pixels"].shape[1:3] != (28, 28):
            raise PlanInputError(f"too large{' for the GPU' * device_outputs}")
        return {name: np.ones((1, 3), np.float32) for name in outputs}

    def batch_limit(self, size: ImageSize) -> int | None:
        return 4 if size == ImageSize(28, 28) else None

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def graph(pooling_bundle: Path) -> Iterator[OnnxRuntimeBackend]:
    backend = OnnxRuntimeBackend(pooling_bundle / "fp32.onnx", device="cpu", threads=1)
    yield backend
    backend.close()


SMALL = {"pixels": np.full((1, 28, 28, 3), 5, np.uint8)}
LARGE = {"pixels": np.full((1, 42, 42, 3), 5, np.uint8)}


def test_the_plan_runs_what_it_takes_and_the_graph_is_not_even_opened() -> None:
    def never() -> Backend:
        raise AssertionError

    backend = FallbackBackend(PickyBackend(), never)
    assert backend.infer(SMALL, ["cls_token"])["cls_token"].tolist() == [[1, 1, 1]]
    assert (backend.description, backend.concurrent_calls) == ("picky", 2)


def test_the_graph_runs_the_rest_and_says_so(graph: OnnxRuntimeBackend) -> None:
    opened = []
    backend = FallbackBackend(PickyBackend(), lambda: opened.append(graph) or graph)  # type: ignore[func-returns-value]
    for _ in range(2):
        with pytest.warns(PlanWarning) as warned:
            outputs = backend.infer(LARGE, ["cls_token"])
        assert outputs["cls_token"].tolist() == [[5, 5, 5]]
        assert str(warned[0].message) == f"too large; {graph.description} is used instead"
    assert opened == [graph]
    assert backend.description == f"picky; unsupported inputs on {graph.description}"


def test_what_was_to_stay_on_the_gpu_is_not_taken_through_the_host(
    graph: OnnxRuntimeBackend,
) -> None:
    backend = FallbackBackend(PickyBackend(), lambda: graph)
    with pytest.raises(PlanInputError, match="too large for the GPU"):
        backend.infer(LARGE, ["cls_token"], device_outputs=True)


def test_what_was_to_stay_on_the_gpu_is_taken_by_a_graph_that_reads_it_there() -> None:
    class Graph(PickyBackend):
        description = "fused"

        def infer(
            self,
            inputs: Mapping[str, Any],  # noqa: ARG002
            outputs: Sequence[str],
            *,
            device_outputs: bool = False,
        ) -> dict[str, Any]:
            return dict.fromkeys(outputs, f"on the GPU: {device_outputs}")

    backend = FallbackBackend(PickyBackend(), Graph)
    with pytest.warns(PlanWarning, match="too large for the GPU; fused is used instead"):
        outputs = backend.infer(LARGE, ["cls_token"], device_outputs=True)
    assert outputs == {"cls_token": "on the GPU: True"}


def test_closing_closes_both(graph: OnnxRuntimeBackend) -> None:
    plan = PickyBackend()
    backend = FallbackBackend(plan, lambda: graph)
    with pytest.warns(PlanWarning):
        backend.infer(LARGE, ["cls_token"])
    backend.close()
    assert plan.closed
    with pytest.raises(BackendError, match="the model is closed"):
        graph.infer(LARGE, ["cls_token"])


def test_the_plans_limits_hold_for_both(graph: OnnxRuntimeBackend) -> None:
    backend = FallbackBackend(PickyBackend(), lambda: graph)
    assert backend.batch_limit(ImageSize(28, 28)) == 4
    assert backend.batch_limit(ImageSize(42, 42)) is None
