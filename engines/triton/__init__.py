"""Writes a bundle as a model repository for NVIDIA Triton Inference Server."""
