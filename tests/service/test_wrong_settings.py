"""Settings that no frame could be segmented with end a run at once, as settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service import runs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--tile-px", "150", "--batch", "100000"), "tile_px = 150, batch = 100000"),
        (("--tile-px", "50"), "tile_px = 50: tiles of"),
    ],
)
def test_wrong_tiles_fail_no_frame(given: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Tiles that cannot be end the run with exit code 2, and no frame is recorded as failed."""
    run = runs.make_run(tmp_path / "run", 8, 0)
    (run / "broken.tif").unlink()
    done = runs.segbatch("process", run, *given)

    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not [file for file in run.glob("*_qc.json") if '"outcome": "failed"' in file.read_text()]


def test_too_little_memory_is_told_without_a_traceback(tmp_path: Path) -> None:
    """Where no tile fits into memory_gib the run ends with exit code 3 and words alone."""
    run = runs.make_run(tmp_path / "run", 12, 0)
    done = runs.segbatch("process", run, "--set", "memory_gib=0.1")

    assert done.returncode == 3, done.stderr
    assert "raise memory_gib" in done.stderr
    assert "Traceback" not in done.stderr
