"""Measures the memory cost of each choice in docs/adr/0005, in A100 plans of TensorRT for RTX.

`python -m dinov2rt.benchmarks.studies.precision_costs VARIANT`. Needs tensorrt_rtx but no GPU.
"""

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import onnx_ir as ir

from dinov2rt.benchmarks.studies.precision_candidates import CHOSEN, INTO_FLOAT, INTO_HALF
from dinov2rt.bundle.normalization import IMAGENET
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.variants import find_variant
from dinov2rt.export.frontend import attach_pixel_input
from dinov2rt.export.graph import ExportGraph
from dinov2rt.export.trace import trace
from dinov2rt.export.weights.synthetic import synthetic_state_dict
from dinov2rt.optional import require

_SHAPE = (32, 518, 518, 3)
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Cost:
    """Figures from the builder's log: scratch memory at the largest shape, and weights."""

    scratch_mib: float
    weights_mib: float

    @classmethod
    def of(cls, log: str) -> Self:
        """Read the builder's log."""
        return cls(_bytes(log, "Max Scratch Memory") / _MIB, _bytes(log, "Weights Memory") / _MIB)


def main() -> None:
    """Print a Markdown table for the variant on the command line."""
    variant = find_variant(sys.argv[1])
    traced = trace(ExportGraph(variant, synthetic_state_dict(variant, 0)).eval())
    print("| what | scratch MiB | weights MiB |\n| --- | --- | --- |")
    for candidate in (CHOSEN, *INTO_HALF, *INTO_FLOAT):
        model = candidate.build(traced, variant, Precision.FP16)
        attach_pixel_input(model, IMAGENET)
        cost = plan_cost(model)
        cells = f"{cost.scratch_mib:.0f} | {cost.weights_mib:.0f}" if cost else "no plan | "
        print(f"| {candidate.name} | {cells} |", flush=True)


def plan_cost(model: ir.Model) -> Cost | None:
    """Build `model` for an A100 at batch 32, 518 × 518; None if the build fails."""
    trt = require("tensorrt_rtx", extra="tensorrt-rtx", purpose="building plans")
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("pixels", _SHAPE, _SHAPE, _SHAPE)
    config.add_optimization_profile(profile)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "typed.onnx"
        ir.save(model, file, external_data=f"{file.name}.data")
        if not trt.OnnxParser(network, logger).parse_from_file(str(file)):
            return None
        plan = builder.build_serialized_network(network, config)
    return Cost.of("\n".join(logger.lines)) if plan is not None else None


def _logger(trt: Any) -> Any:
    class Lines(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, _severity: Any, message: str) -> None:
            self.lines.append(message)

    return Lines()


def _bytes(log: str, what: str) -> int:
    return int(re.findall(rf"{what}: (\d+) bytes", log)[-1])


if __name__ == "__main__":
    main()
