"""ONNX graphs to TensorRT plans."""
