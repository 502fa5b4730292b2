"""Builds TensorRT plans from ONNX graphs: profiles, build, fusion check. Never imports torch."""
