"""Runs TensorRT plans."""
