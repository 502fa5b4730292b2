"""Damaged files, killed processes, faults, long use: the figures of docs/reliability.md."""
