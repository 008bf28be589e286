"""Frames that end the process that works on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from segbatch.errors import StorageError
from segbatch.service.under_way import UnderWay

DYING = """
import ctypes, os, signal, sys
from pathlib import Path
from segbatch.service.under_way import UnderWay

under_way = UnderWay(Path(sys.argv[1]))
with under_way.mark(Path(sys.argv[2]), 3), under_way.mark(Path(sys.argv[2]), 4):
    with under_way.mark(Path(sys.argv[2]), 5):
        pass
    if sys.argv[3] == "fault":
        ctypes.string_at(0)
    os.kill(os.getpid(), int(sys.argv[3]))
"""


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return a raw file."""
    path = tmp_path / "frame.tif"
    path.write_bytes(b"")
    return path


def die(folder: Path, raw: Path, how: str) -> None:
    """Run a process that dies while frames 3 and 4 of ``raw`` are under way."""
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(folder), str(raw), how],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONFAULTHANDLER": ""},
        timeout=60,
    )
    assert done.returncode < 0, done.stderr


@pytest.fixture
def faulthandler_as_before() -> object:
    """Give pytest its own fault handler back."""
    import faulthandler

    yield
    faulthandler.enable(sys.__stderr__)


@pytest.mark.usefixtures("faulthandler_as_before")
@pytest.mark.parametrize("how", ["fault", str(int(signal.SIGABRT))])
def test_a_frame_of_two_deaths_is_set_aside(tmp_path: Path, raw: Path, how: str) -> None:
    """After one fatal fault its frames are suspects, after the second they are set aside."""
    folder = tmp_path / "state"
    die(folder, raw, how)
    once = UnderWay(folder)
    assert once.is_suspect(raw)
    assert once.why_set_aside(raw, 3) is None
    once.close()

    die(folder, raw, how)
    twice = UnderWay(folder)
    why = [twice.why_set_aside(raw, page) for page in (2, 3, 4, 5)]
    twice.close()

    assert [error is not None for error in why] == [False, True, True, False]
    assert "died 2 times" in str(why[1])


@pytest.mark.usefixtures("faulthandler_as_before")
@pytest.mark.parametrize(
    ("kills", "goes_alone", "is_set_aside"),
    [(2, False, False), (3, True, False), (5, True, False), (6, True, True)],
)
def test_a_frame_is_suspect_only_when_it_is_under_way_at_every_kill(
    tmp_path: Path, raw: Path, kills: int, goes_alone: bool, is_set_aside: bool
) -> None:
    """Kills from outside cast no suspicion until a frame was under way at several in a row."""
    folder = tmp_path / "state"
    for _ in range(kills):
        die(folder, raw, str(int(signal.SIGKILL)))
    after = UnderWay(folder)

    assert after.is_suspect(raw) == goes_alone
    assert (after.why_set_aside(raw, 3) is not None) == is_set_aside
    after.close()


@pytest.mark.usefixtures("faulthandler_as_before")
def test_a_kill_at_another_frame_clears_those_before(tmp_path: Path, raw: Path) -> None:
    """Frames that were through when the process was killed again are no suspects any more."""
    folder, other = tmp_path / "state", tmp_path / "other.tif"
    other.write_bytes(b"")
    for each in (raw, raw, raw, other):
        die(folder, each, str(int(signal.SIGKILL)))
    after = UnderWay(folder)

    assert not after.is_suspect(raw)
    assert not after.is_suspect(other)
    after.close()


@pytest.mark.usefixtures("faulthandler_as_before")
def test_one_process_notes_its_frames_in_a_folder(tmp_path: Path) -> None:
    """A second service with the same state is refused; it would wipe the first one's notes."""
    first = UnderWay(tmp_path / "state")
    with pytest.raises(StorageError, match="is being processed by process"):
        UnderWay(tmp_path / "state")
    first.close()
    UnderWay(tmp_path / "state").close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.usefixtures("faulthandler_as_before")
def test_a_full_state_disk_costs_no_frame(tmp_path: Path, raw: Path) -> None:
    """Where frames under way cannot be noted, that is said once and the work goes on."""
    under_way = UnderWay(tmp_path / "state")
    under_way._marks.close()
    under_way._marks = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    with capture_logs() as told:
        for page in range(3):
            with under_way.mark(raw, page):
                pass
    under_way.close()
    assert [line["why"] for line in told] == ["No space left on device"]


@pytest.mark.usefixtures("faulthandler_as_before")
def test_a_file_that_was_replaced_is_no_suspect(tmp_path: Path, raw: Path) -> None:
    """Another file of the same name is not held responsible for what the first one did."""
    folder = tmp_path / "state"
    die(folder, raw, "fault")
    die(folder, raw, "fault")
    os.utime(raw, ns=(1, 1))
    after = UnderWay(folder)

    assert not after.is_suspect(raw)
    assert after.why_set_aside(raw, 3) is None
    after.close()


@pytest.mark.usefixtures("faulthandler_as_before")
def test_marks_are_on_the_disk_while_frames_are_under_way(tmp_path: Path, raw: Path) -> None:
    """The list names exactly the frames under way, at any moment."""
    folder = tmp_path / "state"
    under_way = UnderWay(folder)

    def pages() -> list[str]:
        return [name.rpartition("\n")[2] for name in json.loads(marks.read_bytes())]

    marks = folder / "under-way.json"
    with under_way.mark(raw, 10_000), under_way.mark(raw, 2):
        assert pages() == ["10000", "2"]
    assert pages() == []
    under_way.close()
    assert list(folder.iterdir()) == []
