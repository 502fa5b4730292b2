"""The command line: `dinov2rt VERB`, one module a verb."""

from dinov2rt.cli.entry import main

__all__ = ["main"]
