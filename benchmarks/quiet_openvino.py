"""OpenVINO, imported so that it sends no telemetry; a benchmark must not talk to the network."""

import sys

# Without this package it uses a stub of its own; there is no setting short of a file in ~/intel.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402

del sys.modules["openvino_telemetry"]

__all__ = ["openvino"]
