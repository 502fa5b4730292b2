"""Exports a checkpoint to an ONNX bundle, by way of the eager PyTorch model."""
