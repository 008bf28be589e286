"""Where the house keeps what its tests look at."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Folders that are made, not written.
MADE = {"build", "demo", "dist"}
COMMAND = Path(sys.executable).parent / "segbatch"


def written(suffix: str) -> list[Path]:
    """Return the files of the project whose names end in ``suffix``, made ones left out."""
    found = []
    for folder, below, names in os.walk(ROOT):
        below[:] = [name for name in below if not name.startswith(".") and name not in MADE]
        found += [Path(folder) / name for name in names if name.endswith(suffix)]
    return sorted(found)
