"""Shared parts of the tasks of heads: class tables, resampling and comparison."""
