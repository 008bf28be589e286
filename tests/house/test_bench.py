"""The scripts that measure still run."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.house.places import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SCRIPTS = [
    file
    for file in sorted((ROOT / "bench").glob("*.py"))
    if "__main__" in file.read_text(encoding="utf-8")
]


def answer(script: Path, *arguments: str) -> str:
    """Run a script of bench/ and return what it printed."""
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.learn
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_say_what_they_take(script: Path) -> None:
    """Every script of bench/ answers when it is asked for help."""
    assert "usage" in answer(script, "--help")


@pytest.mark.slow
def test_quality_is_measured() -> None:
    """The judging script prints how many good frames it accepted."""
    assert "balanced accuracy" in answer(ROOT / "bench" / "quality.py", "--runs", "1")
