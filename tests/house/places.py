"""Where the house keeps what its tests look at."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Folders that are made, not written.
MADE = {"build", "demo", "dist"}
COMMAND = Path(sys.executable).parent / "segbatch"


def written(pattern: str) -> list[Path]:
    """Return the files of the project that match ``pattern``, in order, made ones left out."""
    return sorted(
        file
        for file in ROOT.rglob(pattern)
        if not any(
            part.startswith(".") or part in MADE or part.endswith(".egg-info")
            for part in file.relative_to(ROOT).parts
        )
    )
