"""The command line: parse, one call, an exit code."""

from segbatch.cli import camera, engines, frames, learning, service
from segbatch.cli.program import main

__all__ = ["camera", "engines", "frames", "learning", "main", "service"]
