"""Measurements behind single decisions."""
