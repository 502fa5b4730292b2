"""Measurements behind design decisions; each module is a command."""
