"""Checkpoint to eager PyTorch model to ONNX bundle."""
