"""Timing candidates beside each other."""
