"""The command line: parse, one call, an exit code."""

from segbatch.cli import camera, frames, learning, service
from segbatch.cli.program import main

__all__ = ["camera", "frames", "learning", "main", "service"]
