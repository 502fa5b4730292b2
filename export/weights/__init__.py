"""Checkpoints of every kind, read into one state dict."""
