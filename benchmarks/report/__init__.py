"""Renders benchmark results as pages and tables."""
