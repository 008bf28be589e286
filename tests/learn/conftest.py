"""Tests of the learning room; those that need torch are absent where it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tests.infer.conftest import frame, make_model, own_cache

__all__ = ["frame", "make_model", "own_cache"]

if importlib.util.find_spec("torch") is None:
    collect_ignore = [
        file.name
        for file in Path(__file__).parent.glob("test_*.py")
        if "pytest.mark.learn" in file.read_text(encoding="utf-8")
    ]
