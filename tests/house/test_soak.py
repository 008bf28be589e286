"""The soak of bench/ notices what it is there to notice."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.house.places import ROOT

KINDS = ("renamed", "image stack")
FRAMES = 6


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """Return the parts of the soak that need no service."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        from soaking import check, frames, writers

        return {"check": check, "frames": frames, "writers": writers.WRITERS}


@pytest.fixture(scope="module")
def album(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make the frames that runs are cut from."""
    return parts["frames"].Album(tmp_path_factory.mktemp("album") / "run", 1)


@pytest.fixture(scope="module", params=KINDS)
def processed(
    parts: dict[str, Any],
    album: Any,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """Write a run of some kind and process it; nothing is wrong with it."""
    root = tmp_path_factory.mktemp("tree")
    run = parts["frames"].Run(
        name="run",
        kind=request.param,
        root=root,
        out=root,
        frames=FRAMES,
        rng=np.random.default_rng(1),
        album=album,
        gate=lambda: None,
    )
    parts["writers"][run.kind](run)
    subprocess.run(
        [sys.executable, "-m", "segbatch", "process", run.folder, "--bit-depth", "10"],
        capture_output=True,
        check=True,
    )
    return run


@pytest.fixture
def run(processed: Any, tmp_path: Path) -> Any:
    """Return a copy of the run, to be spoiled."""
    shutil.copytree(processed.root, tmp_path / "tree")
    return type(processed)(
        **{
            **vars(processed),
            "root": tmp_path / "tree",
            "out": tmp_path / "tree",
            "written": dict(processed.written),
        }
    )


def wrong(parts: dict[str, Any], run: Any) -> str:
    """Return what the soak finds wrong with a run."""
    return "\n".join(parts["check"].look_through(run, Counter()))


def qc_log(run: Any) -> Path:
    """Return the first QC log of a run."""
    return sorted(run.results.glob("*_qc.json*"))[0]


def test_a_sound_run_passes(parts: dict[str, Any], run: Any) -> None:
    """Of a run that was processed the soak counts one outcome a frame, and finds nothing wrong."""
    outcomes: Counter[str] = Counter()
    assert parts["check"].is_over(run)
    assert parts["check"].look_through(run, outcomes) == []
    assert sum(outcomes.values()) == FRAMES


def test_a_lost_outcome_is_noticed(parts: dict[str, Any], run: Any) -> None:
    """A frame without an outcome is named."""
    lines = qc_log(run).read_bytes().splitlines(keepends=True)
    if len(lines) == FRAMES:
        qc_log(run).write_bytes(b"".join(lines[:-1]))
    else:
        qc_log(run).unlink()
    assert "no outcome" in wrong(parts, run)


def test_a_second_outcome_is_noticed(parts: dict[str, Any], run: Any) -> None:
    """A frame with two outcomes is named."""
    log = qc_log(run)
    shutil.copy(log, log.with_name(f"again_qc{log.suffix}"))
    assert "a second outcome" in wrong(parts, run)


def test_an_outcome_of_other_pixels_is_noticed(parts: dict[str, Any], run: Any) -> None:
    """An outcome that answers for other pixels than were written is named."""
    key = next(iter(run.written))
    run.written[key] = "0" * 64
    assert "other pixels" in wrong(parts, run)


def test_a_lost_raw_file_is_noticed(parts: dict[str, Any], run: Any) -> None:
    """A raw file that is gone is named."""
    (run.folder / next(iter(run.written))[0]).unlink()
    assert "the raw file is gone" in wrong(parts, run)


def test_a_lost_mask_is_noticed(parts: dict[str, Any], run: Any) -> None:
    """A mask that a record names and that is not there is named."""
    sorted(run.results.glob("*_mask*.tif"))[0].unlink()
    assert "_mask" in wrong(parts, run)


def test_a_half_written_file_is_noticed(parts: dict[str, Any], run: Any) -> None:
    """A file that was left half written is named."""
    (run.results / ".1234.segbatch-part").touch()
    assert "left lying" in wrong(parts, run)
