"""ONNX graphs to TensorRT plans: profiles, build, proof of fusion. Never torch."""
