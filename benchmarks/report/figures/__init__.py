"""Plots of a run as SVG, by Matplotlib."""
