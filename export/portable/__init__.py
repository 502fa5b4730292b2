"""Graphs for runtimes other than the newest: older opsets, and one fixed shape."""
