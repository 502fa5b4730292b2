"""Measures candidates side by side: processes, accuracy, turns, and the roofline."""
