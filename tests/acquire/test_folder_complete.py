"""When a file is taken, told by a clock that the test turns."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import tifffile

from segbatch.acquire.folder.complete import Candidate, Finding, Oracle
from segbatch.acquire.folder.scan import Seen
from tests.acquire.live_writers import (
    SHAPE,
    ImageStackWriter,
    NdtiffWriter,
    SeparateFilesWriter,
    content,
    numbered,
    write,
)

SETTLE_S = 10.0


class Clocked:
    """One file that is looked at at the moments that a test names (seconds)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._oracle = Oracle(SETTLE_S)
        self.file = Candidate(self._seen(), 0.0)

    def at(self, now: float) -> Finding:
        """Look at the file as it is now."""
        seen = self._seen()
        if seen != self.file.seen:
            self.file.change(seen, now)
        finding = self._oracle.judge(self.file, now)
        if finding.complete:
            self.file.reported = finding.frames or 0
        else:
            assert finding.again_in_s > 0
        return finding

    def _seen(self) -> Seen:
        stat = self._path.stat()
        return Seen(str(self._path), stat.st_size, stat.st_mtime_ns)


def test_a_whole_file_waits_for_its_quiet_time_and_no_longer(tmp_path: Path) -> None:
    """The next look is at the very moment at which it can be taken."""
    file = Clocked(write(tmp_path / "a.tif"))
    assert file.at(0).again_in_s == SETTLE_S
    assert file.at(4).again_in_s == SETTLE_S - 4
    assert file.at(SETTLE_S) == Finding(complete=True)


def test_a_file_that_never_becomes_whole_is_looked_at_less_and_less(tmp_path: Path) -> None:
    """It costs next to nothing, and is not opened again until it changes."""
    path = tmp_path / "a.tif"
    path.write_bytes(content()[:-10])
    file = Clocked(path)
    pauses = [file.at(now).again_in_s for now in (20, 100, 1000, 10_000)]
    assert pauses == [20, 100, 200, 200]
    path.write_bytes(content())
    assert file.at(10_001).again_in_s == SETTLE_S
    assert file.at(10_011).complete


def test_a_frame_that_ends_in_zeros_waits_one_more_quiet_time(tmp_path: Path) -> None:
    """Zeros up to the last row may be room that was made: the frame is given time to come."""
    path = tmp_path / "room.tif"
    pixels = numbered(2)
    pixels[-2:] = 0
    tifffile.imwrite(path, pixels)
    file = Clocked(path)
    assert not file.at(SETTLE_S).complete
    assert file.at(15).again_in_s == 5
    assert file.at(2 * SETTLE_S).complete
    write(path, 2)
    assert not file.at(25).complete
    assert file.at(25 + SETTLE_S).complete
    tifffile.imwrite(path, np.zeros((8, 8), np.uint16), compression="zlib")
    file.at(40)
    assert file.at(40 + SETTLE_S).complete  # coded, zeros have an end that is none


def test_what_was_renamed_into_place_need_not_be_quiet(tmp_path: Path) -> None:
    """It must be whole, and what comes after the rename is not trusted so."""
    file = Clocked(write(tmp_path / "a.tif"))
    file.file.renamed = True
    assert file.at(0.0).complete
    (tmp_path / "b.tif").write_bytes(content()[:-10])
    file = Clocked(tmp_path / "b.tif")
    file.file.renamed = True
    assert not file.at(0.0).complete
    write(tmp_path / "b.tif")
    assert not file.at(1.0).complete
    assert file.at(1 + SETTLE_S).complete


def test_a_separate_file_is_complete_when_metadata_txt_says_so(tmp_path: Path) -> None:
    """Without its entry it waits far longer than the quiet time, with it not even that."""
    writer = SeparateFilesWriter(tmp_path)
    file = Clocked(writer.put_image())
    assert file.at(0.0).again_in_s < 0.1
    assert not file.at(9 * SETTLE_S).complete
    writer.put_entry()
    assert Clocked(writer.folder / file.file.seen.path).at(0.0).complete
    crashed = Clocked(writer.put_image())
    assert not crashed.at(9 * SETTLE_S).complete
    assert crashed.at(10 * SETTLE_S).complete
    writer.finish()


def test_what_changed_after_it_was_taken_needs_quiet_whatever_its_writer_says(
    tmp_path: Path,
) -> None:
    """A proof that was true of what stood there before is none of what stands there now."""
    writer = SeparateFilesWriter(tmp_path)
    path = writer.put_image()
    writer.put_entry()
    file = Clocked(path)
    file.file.needs_quiet = True
    assert not file.at(1.0).complete
    assert file.at(SETTLE_S).complete
    writer.finish()


def test_a_frame_whose_end_has_not_appeared_yet_is_doubted_for_a_while(tmp_path: Path) -> None:
    """On a share the next frame's entry may be seen before this frame's last rows."""
    writer = ImageStackWriter(tmp_path / "run_MMStack_Pos0.ome.tif", frames=6)
    file = Clocked(writer.path)
    for _ in range(2):
        writer.put()
    writer.put_entry()
    assert file.at(0.0).frames == 2
    writer.put_frame(rows=SHAPE[0] // 2)
    writer.put_early_entry()
    assert not file.at(1.0).complete
    assert not file.at(SETTLE_S).complete
    writer.put_frame()
    assert file.at(SETTLE_S + 0.5).frames == 3
    writer.abandon()


def test_a_frame_of_zeros_is_taken_when_it_stays_so(tmp_path: Path) -> None:
    """Micro-Manager pads runs that were aborted with blank frames: they are frames."""
    writer = ImageStackWriter(tmp_path / "run_MMStack_Pos0.ome.tif", frames=6)
    file = Clocked(writer.path)
    writer.put()
    writer.put_entry()
    writer.put_frame(rows=0)
    writer.put_early_entry()
    assert file.at(0.0).frames == 1
    assert not file.at(SETTLE_S - 1).complete
    assert file.at(SETTLE_S).frames == 2
    writer.abandon()


def test_a_stack_that_is_written_anew_is_followed_from_its_start(tmp_path: Path) -> None:
    """Frames that were counted under its name before are not its own."""
    path = tmp_path / "run_MMStack_Pos0.ome.tif"
    first = ImageStackWriter(path, frames=6)
    for _ in range(5):
        first.put()
    first.abandon()
    file = Clocked(path)
    assert file.at(0.0).frames == 4
    second = ImageStackWriter(path, frames=6, shape=(200, 300))
    for _ in range(3):
        second.put()
    assert file.at(1.0).frames == 2
    second.abandon()


def test_a_finished_ndtiff_set_that_is_being_copied_waits_for_its_pixels(tmp_path: Path) -> None:
    """Its index may be there long before the stack that it speaks of, in room that was made."""
    source = NdtiffWriter(tmp_path / "source")
    for _ in range(4):
        source.put()
    source.finish()
    data = source.path.read_bytes()
    target = tmp_path / "target" / source.path.name
    target.parent.mkdir()
    shutil.copy(source.path.with_name("NDTiff.index"), target.parent)
    with target.open("wb", buffering=0) as copy:
        copy.truncate(len(data))  # as Windows' Explorer makes room before it copies
        file = Clocked(target)
        for second in range(1, 40, 3):
            copy.write(data[copy.tell() :][: len(data) // 16])
            assert not file.at(float(second)).complete
        copy.write(data[copy.tell() :])
    assert not file.at(50.0).complete
    last = file.at(50 + SETTLE_S)
    assert (last.complete, last.frames, last.closed) == (True, 4, True)
