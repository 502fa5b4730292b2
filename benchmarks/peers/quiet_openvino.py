"""OpenVINO, imported so that it sends no telemetry; a benchmark must not talk to the network."""

from types import ModuleType

from dinov2rt.runtime.backends.openvino import import_openvino

openvino: ModuleType = import_openvino()

__all__ = ["openvino"]
