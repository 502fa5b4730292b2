"""OpenVINO, imported so that it sends no telemetry; a benchmark must not talk to the network."""

from dinov2rt.runtime.backends.openvino import import_openvino

openvino = import_openvino()

__all__ = ["openvino"]
