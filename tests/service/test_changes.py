"""Raw files, records and results that change between two runs, or under the run's hands."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from segbatch import log
from segbatch.acquire.simulate import write_run
from segbatch.acquire.source import Source, open_source
from segbatch.frame import Frame
from segbatch.infer.segment import Segmentation, Segmenter
from segbatch.service import plan
from segbatch.service.process import Process, RunReport
from segbatch.service.progress import Progress
from segbatch.service.record import single, stack
from segbatch.service.selection import select
from segbatch.settings import Settings
from tests.service import runs
from tests.service.test_nothing_lost import as_mere_user


@functools.cache
def good_pixels() -> np.ndarray:
    """Return a frame of beads that is accepted, (192, 256) uint16."""
    with tempfile.TemporaryDirectory() as scratch:
        write_run(Path(scratch), 4, seed=5, height_px=192, width_px=256)
        told = json.loads((Path(scratch) / "simulated.json").read_text())["frames"]
        name = next(frame["file"] for frame in told if frame["kind"] == "good")
        return tifffile.imread(Path(scratch) / name)


def pixels_of(number: int) -> np.ndarray:
    """Return one of many good frames, no two alike: the same beads mirrored, with other noise."""
    mirrored = good_pixels()[:: (1, -1)[number % 2], :: (1, -1)[number // 2 % 2]]
    noise = np.random.default_rng(number).integers(0, 2, mirrored.shape, np.uint16)
    return np.minimum(mirrored + noise, 1022)


def write_raw(path: Path, numbers: Iterable[int]) -> Path:
    """Write a raw file of these frames, under a new inode as acquisition programs do."""
    pages = np.stack([pixels_of(number) for number in numbers])
    scratch = path.with_name(".being_written")
    tifffile.imwrite(scratch, pages if len(pages) > 1 else pages[0], photometric="minisblack")
    scratch.replace(path)
    return path


def process_here(*paths: Path, stop: threading.Event | None = None, **settings: Any) -> RunReport:
    """Process one folder, or files of one, in this process."""
    process = Process(Settings(**settings), stop or threading.Event(), Progress(quiet=True))
    try:
        (selection,) = select([str(path) for path in paths])
        return process.run(selection)
    finally:
        process.close()


def told(folder: Path) -> dict[tuple[str, int], tuple[str, tuple[str, ...]]]:
    """Return each frame's outcome and reasons; fails if a frame has two outcomes."""
    return {key: (o.outcome, o.reasons) for key, o in runs.outcomes(folder).items()}


def segmented(name: str, count: int = 1) -> dict[tuple[str, int], tuple[str, tuple[str, ...]]]:
    """Return what ``told`` says of a file whose frames are all segmented."""
    return {(name, page): ("segmented", ()) for page in range(count)}


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time stamp of every result: equal values mean that nothing was redone."""
    found = {}
    for path in sorted(folder.rglob("*")):
        ours = any(part in path.name for part in ("_mask.", "_labels.", "_prob.", "_qc."))
        if ours and not path.name.startswith("."):
            found[str(path.relative_to(folder))] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def masks(path: Path) -> list[np.ndarray]:
    """Return the pages of a mask."""
    with tifffile.TiffFile(path) as file:
        return [page.asarray() for page in file.pages]


@pytest.fixture(autouse=True)
def _log_as_json() -> None:
    """Send the log to stderr, as the command does."""
    log.configure(json_lines=True)


def test_redo_gives_the_same_results_and_loses_nothing(tmp_path: Path) -> None:
    """--redo on singles and a stack ends with exit 0 and the same outcomes in new files."""
    for number in range(3):
        write_raw(tmp_path / f"a{number}.tif", [number])
    write_raw(tmp_path / "s.tif", range(3, 8))
    process_here(tmp_path)
    before, files = runs.outcomes(tmp_path), written(tmp_path)
    done = runs.segbatch("process", tmp_path, "--redo")

    assert done.returncode == 0, done.stderr
    assert runs.outcomes(tmp_path) == before
    assert written(tmp_path).keys() == files.keys()
    assert not set(written(tmp_path).values()) & set(files.values())
    assert runs.hidden_files(tmp_path) == []


@pytest.mark.parametrize("first", [{"redo": True}, {"threshold": 0.9}])
@pytest.mark.parametrize("second", [{"redo": True}, {}])
def test_an_interrupted_redo_keeps_the_old_results_of_a_stack(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """A stack whose redoing was stopped half-way has its old log and mask until it is through."""
    write_raw(tmp_path / "s.tif", range(40))
    process_here(tmp_path)
    before, files = runs.outcomes(tmp_path), written(tmp_path)
    stop = threading.Event()
    process = Process(Settings(**first), stop, StopAfter(stop, 3))
    report = process.run(select([str(tmp_path)])[0])
    process.close()

    assert report.state == "interrupted"
    assert written(tmp_path) == files
    process_here(tmp_path, **second)
    assert runs.outcomes(tmp_path) == before
    assert runs.hidden_files(tmp_path) == []


class StopAfter(Progress):
    """Asks the run to stop when so many frames are recorded."""

    def __init__(self, stop: threading.Event, frames: int) -> None:
        super().__init__(quiet=True)
        self._stop_event, self._frames = stop, frames

    def note(self, record: Any) -> None:
        """Count, and stop the run."""
        super().note(record)
        if self.done >= self._frames:
            self._stop_event.set()


@pytest.mark.parametrize("before", [1, 2])
def test_a_stack_that_grew_gets_outcomes_for_its_new_frames(tmp_path: Path, before: int) -> None:
    """A raw that grew to five frames has five outcomes, and old frames keep their masks."""
    raw = write_raw(tmp_path / "s.tif", range(before))
    process_here(tmp_path)
    old = masks(tmp_path / "s_mask.tif")
    write_raw(raw, range(5))
    done = runs.segbatch("process", tmp_path)

    assert done.returncode == 0, done.stderr
    assert told(tmp_path) == segmented("s.tif", 5)
    assert len(masks(tmp_path / "s_mask.tif")) == 5
    for mask, kept in zip(masks(tmp_path / "s_mask.tif"), old, strict=False):
        assert np.array_equal(mask, kept)
    files = written(tmp_path)
    process_here(tmp_path)
    assert written(tmp_path) == files


def test_new_frames_of_a_stack_are_labelled_like_the_old_ones(tmp_path: Path) -> None:
    """Where a stack has labels, the frames that it grew by get theirs without the flag."""
    raw = write_raw(tmp_path / "s.tif", range(2))
    process_here(tmp_path, save_labels=True)
    write_raw(raw, range(4))
    process_here(tmp_path)

    assert told(tmp_path) == segmented("s.tif", 4)
    for mask, labels in zip(
        masks(tmp_path / "s_mask.tif"), masks(tmp_path / "s_labels.tif"), strict=True
    ):
        assert np.array_equal(labels > 0, mask > 0)


def test_a_stack_without_its_mask_file_goes_on(tmp_path: Path) -> None:
    """A stack of rejected frames whose mask was deleted by hand may still grow."""
    blank = np.full((2, 192, 256), 100, np.uint16)
    raw = tmp_path / "s.tif"
    tifffile.imwrite(raw, blank, photometric="minisblack")
    process_here(tmp_path)
    (tmp_path / "s_mask.tif").unlink()
    tifffile.imwrite(raw, np.concatenate([blank, blank[:1]]), photometric="minisblack")
    done = runs.segbatch("process", tmp_path)

    assert done.returncode == 0, done.stderr
    assert len(runs.outcomes(tmp_path)) == 3


def test_a_stack_that_shrank_has_no_outcomes_of_frames_that_are_gone(tmp_path: Path) -> None:
    """A raw cut from five frames to two has two outcomes and a mask of two pages."""
    raw = write_raw(tmp_path / "s.tif", range(5))
    process_here(tmp_path)
    write_raw(raw, range(2))
    done = runs.segbatch("process", tmp_path)

    assert done.returncode == 0, done.stderr
    assert told(tmp_path) == segmented("s.tif", 2)
    assert len(masks(tmp_path / "s_mask.tif")) == 2


@pytest.mark.parametrize(("first", "second"), [(1, 3), (3, 1)])
def test_a_raw_has_one_kind_of_log(tmp_path: Path, first: int, second: int) -> None:
    """A single frame that became another stack, or the reverse, keeps no log of the other kind."""
    raw = write_raw(tmp_path / "s.tif", range(first))
    process_here(tmp_path)
    write_raw(raw, range(10, 10 + second))
    process_here(tmp_path)

    assert told(tmp_path) == segmented("s.tif", second)
    assert (tmp_path / "s_qc.json").exists() == (second == 1)
    assert (tmp_path / "s_qc.jsonl").exists() == (second > 1)


def test_a_half_done_stack_that_became_a_single_frame_leaves_nothing_hidden(
    tmp_path: Path,
) -> None:
    """Hidden files of an interrupted stack go when its raw holds a single frame now."""
    raw = write_raw(tmp_path / "s.tif", range(40))
    stop = threading.Event()
    process = Process(Settings(), stop, StopAfter(stop, 3))
    process.run(select([str(tmp_path)])[0])
    process.close()
    assert runs.hidden_files(tmp_path)
    write_raw(raw, [50])
    process_here(tmp_path)

    assert told(tmp_path) == segmented("s.tif")
    assert runs.hidden_files(tmp_path) == []


def test_a_half_done_stack_that_was_replaced_starts_anew(tmp_path: Path) -> None:
    """Frames recorded of an earlier raw never stand in the log of the one that replaced it."""
    raw = write_raw(tmp_path / "s.tif", range(40))
    stop = threading.Event()
    process = Process(Settings(), stop, StopAfter(stop, 3))
    process.run(select([str(tmp_path)])[0])
    process.close()
    write_raw(raw, range(50, 54))
    process_here(tmp_path)

    hashes = [record["frame"]["pixel_hash"] for record in runs.records(tmp_path)]
    with open_here(raw) as source:
        assert hashes == [plan.hash_pixels(source.read(page).pixels) for page in range(4)]


def open_here(raw: Path) -> Source:
    """Open a raw file as the default settings do."""
    return open_source(raw, bit_depth=None, profile="zelux", max_file_gib=4.0)


def test_a_stack_of_other_pixels_is_done_again(tmp_path: Path) -> None:
    """A stack replaced by another of the same size has the other's hashes, and says why."""
    raw = write_raw(tmp_path / "s.tif", range(3))
    process_here(tmp_path)
    before = runs.outcomes(tmp_path)
    write_raw(raw, range(10, 13))
    done = runs.segbatch("process", tmp_path)
    after = runs.outcomes(tmp_path)

    assert done.returncode == 0
    assert "raw file changed" in done.stderr
    assert told(tmp_path) == segmented("s.tif", 3)
    assert all(after[key].pixel_hash != before[key].pixel_hash for key in before)


class Replacing:
    """Replaces raw files at chosen moments: before a read, or while a frame is segmented."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._left: dict[Path, list[Any]] = {}
        self._guard = threading.Lock()

    def before_read(self, raw: Path, *contents: Any) -> None:
        """Replace ``raw`` by the next of ``contents`` each time when it is about to be read."""
        self._left[raw] = list(contents)
        read = Source.read

        def replaced(source: Source, page: int) -> Frame:
            self._replace(source.path)
            return read(source, page)

        self._patch.setattr(Source, "read", replaced)

    def before_record(self, raw: Path, *contents: Any) -> None:
        """Replace ``raw`` each time when a frame was segmented."""
        self._left[raw] = list(contents)
        segment = Segmenter.segment

        def replaced(segmenter: Segmenter, *args: Any, **options: Any) -> Segmentation:
            found = segment(segmenter, *args, **options)
            self._replace(raw)
            return found

        self._patch.setattr(Segmenter, "segment", replaced)

    def _replace(self, raw: Path) -> None:
        with self._guard:
            if contents := self._left.get(raw):
                content = contents.pop(0)
                if isinstance(content, bytes):
                    raw.unlink()
                    raw.write_bytes(content)
                else:
                    write_raw(raw, content)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("moment", ["before_read", "before_record"])
def test_a_raw_replaced_under_our_hands_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, moment: str
) -> None:
    """A raw replaced between open and record ends with the outcomes of what is there now."""
    raw = write_raw(tmp_path / "s.tif", range(count))
    write_raw(tmp_path / "t.tif", [40])
    getattr(Replacing(monkeypatch), moment)(raw, range(10, 10 + count))
    report = process_here(tmp_path)

    assert report.failed == []
    assert told(tmp_path) == segmented("s.tif", count) | segmented("t.tif")
    with open_here(raw) as source:
        for page in range(count):
            there = plan.hash_pixels(source.read(page).pixels)
            assert runs.outcomes(tmp_path)["s.tif", page].pixel_hash == there
    assert runs.hidden_files(tmp_path) == []


def test_a_raw_that_never_rests_fails_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A raw that is replaced whenever it is read fails after some attempts, and says so."""
    raw = write_raw(tmp_path / "s.tif", range(3))
    write_raw(tmp_path / "t.tif", [40])
    Replacing(monkeypatch).before_read(raw, *(range(n, n + 3) for n in range(50, 90, 3)))
    report = process_here(tmp_path)

    assert told(tmp_path) == {("s.tif", 0): ("failed", ("unreadable",))} | segmented("t.tif")
    assert "changed 3 times" in report.failed[0]
    assert runs.hidden_files(tmp_path) == []
    monkeypatch.undo()
    process_here(tmp_path)
    assert told(tmp_path) == segmented("s.tif", 3) | segmented("t.tif")


def test_a_frame_that_is_gone_makes_no_other_a_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels that were judged and then replaced by a broken file count for no other frame."""
    raw = write_raw(tmp_path / "a.tif", [1])
    write_raw(tmp_path / "b.tif", [1])
    Replacing(monkeypatch).before_record(raw, b"II*\0\x08\0\0\0 this is no image")
    process_here(tmp_path)

    assert told(tmp_path) == {("a.tif", 0): ("failed", ("unreadable",))} | segmented("b.tif")


@pytest.mark.parametrize("count", [1, 3])
def test_a_raw_replaced_during_renewals_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A frame that is segmented at the end of a run, and was replaced just then, is done anew."""
    first, second = tmp_path / "a.tif", tmp_path / "b.tif"
    write_raw(first, range(count))
    write_raw(second, range(count))
    process_here(tmp_path)
    assert told(tmp_path) == segmented("a.tif", count) | {
        ("b.tif", page): ("rejected", ("duplicate",)) for page in range(count)
    }
    write_raw(first, range(20, 20 + count))  # now b is no duplicate any more
    Replacing(monkeypatch).before_read(second, range(30, 30 + count))
    # Opened unchanged while the run is planned, so that only the renewal reads it.
    report = process_here(tmp_path)

    assert report.failed == []
    assert told(tmp_path) == segmented("a.tif", count) | segmented("b.tif", count)
    with open_here(second) as source:
        for page in range(count):
            there = plan.hash_pixels(source.read(page).pixels)
            assert runs.outcomes(tmp_path)["b.tif", page].pixel_hash == there
    assert not any(record["quality"]["provisional"] for record in runs.records(tmp_path))
    assert runs.hidden_files(tmp_path) == []


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the frames whose pixels are compared with records from now on."""
    hashes: list[int] = []
    hash_pixels = plan.hash_pixels

    def counted(pixels: np.ndarray) -> str:
        hashes.append(1)
        return hash_pixels(pixels)

    monkeypatch.setattr(plan, "hash_pixels", counted)
    return hashes


def test_touched_files_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a new time stamp on the same pixels one run compares them, and the next ones none."""
    raws = [write_raw(tmp_path / f"a{number}.tif", [number]) for number in range(3)]
    raws.append(write_raw(tmp_path / "s.tif", range(10, 14)))
    process_here(tmp_path)
    before = runs.outcomes(tmp_path)
    for raw in raws:
        os.utime(raw, ns=(1, 1_700_000_000_123_456_789))
    hashes = count_hashes(monkeypatch)
    process_here(tmp_path)

    assert len(hashes) == 7
    assert runs.outcomes(tmp_path) == before
    assert {r["frame"]["mtime_ns"] for r in runs.records(tmp_path)} == {1_700_000_000_123_456_789}
    files = written(tmp_path)
    process_here(tmp_path)
    assert len(hashes) == 7
    assert written(tmp_path) == files


@pytest.mark.parametrize("count", [1, 3])
def test_a_raw_replaced_after_it_was_compared_is_noticed_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Records brought up to date say the time stamp of the pixels that were compared."""
    raw = write_raw(tmp_path / "s.tif", range(count))
    process_here(tmp_path)
    os.utime(raw)
    looked = plan.Ledger.look_up

    def replaced_after(ledger: plan.Ledger, file: plan.PlannedFile) -> list[Any]:
        found = looked(ledger, file)
        write_raw(raw, range(10, 10 + count))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(plan.Ledger, "look_up", replaced_after)
        process_here(tmp_path)
    process_here(tmp_path)

    with open_here(raw) as source:
        for page in range(count):
            there = plan.hash_pixels(source.read(page).pixels)
            assert runs.outcomes(tmp_path)["s.tif", page].pixel_hash == there


@pytest.mark.parametrize("count", [1, 3])
def test_a_touched_raw_that_vanishes_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A raw that goes away between planning and recording costs no other frame."""
    raw = write_raw(tmp_path / "s.tif", range(count))
    process_here(tmp_path)
    os.utime(raw)
    write_raw(tmp_path / "t.tif", [40])
    looked = plan.Ledger.look_up

    def gone_after(ledger: plan.Ledger, file: plan.PlannedFile) -> list[Any]:
        found = looked(ledger, file)
        raw.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(plan.Ledger, "look_up", gone_after)
    process_here(tmp_path)

    assert told(tmp_path)["t.tif", 0] == ("segmented", ())


@pytest.mark.skipif(as_mere_user() is None, reason="permissions cannot be made to bind here")
@pytest.mark.parametrize("count", [1, 3])
def test_a_raw_that_cannot_be_read_now_keeps_its_results(tmp_path: Path, count: int) -> None:
    """A raw with a new time stamp and no read permission is named with exit 1; results stay."""
    raw = write_raw(tmp_path / "s.tif", range(count))
    write_raw(tmp_path / "t.tif", [40])
    process_here(tmp_path)
    files = written(tmp_path)
    os.utime(raw)
    raw.chmod(0)
    command = [*(as_mere_user() or []), *runs.COMMAND, "process", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stderr
    assert "s.tif" in done.stdout
    assert written(tmp_path) == files
    raw.chmod(0o644)
    assert runs.segbatch("process", tmp_path).returncode == 0
    assert told(tmp_path) == segmented("s.tif", count) | segmented("t.tif")


@pytest.mark.parametrize("count", [1, 3])
def test_labels_asked_for_later_are_made_for_frames_that_are_done(
    tmp_path: Path, count: int
) -> None:
    """--save-labels makes labels of finished frames; without it nothing is redone or removed."""
    write_raw(tmp_path / "s.tif", range(count))
    process_here(tmp_path)
    before = runs.outcomes(tmp_path)
    done = runs.segbatch("process", tmp_path, "--save-labels")

    assert done.returncode == 0, done.stderr
    assert runs.outcomes(tmp_path) == before
    for mask, labels in zip(
        masks(tmp_path / "s_mask.tif"), masks(tmp_path / "s_labels.tif"), strict=True
    ):
        assert np.array_equal(labels > 0, mask > 0)
    files = written(tmp_path)
    process_here(tmp_path)
    assert written(tmp_path) == files


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("lost", ["s_labels.tif", "s_mask.tif"])
def test_a_product_deleted_by_hand_is_made_again(tmp_path: Path, count: int, lost: str) -> None:
    """Labels or a mask that somebody deleted are there again after the next run."""
    write_raw(tmp_path / "s.tif", range(count))
    process_here(tmp_path, save_labels=True)
    before, content = runs.outcomes(tmp_path), masks(tmp_path / lost)
    (tmp_path / lost).unlink()
    process_here(tmp_path, save_labels=True)

    assert runs.outcomes(tmp_path) == before
    for page, made in zip(content, masks(tmp_path / lost), strict=True):
        assert np.array_equal(page, made)


def test_a_record_without_one_measure_is_stale(tmp_path: Path) -> None:
    """A record that lacks a measure is done again, single or in a stack, and the run says why."""
    write_raw(tmp_path / "a.tif", [1])
    write_raw(tmp_path / "s.tif", range(10, 13))
    process_here(tmp_path)
    before = runs.outcomes(tmp_path)
    for log_file in (tmp_path / "a_qc.json", tmp_path / "s_qc.jsonl"):
        lines = log_file.read_text().splitlines() if log_file.suffix == ".jsonl" else []
        records = [json.loads(line) for line in lines] or [json.loads(log_file.read_text())]
        del records[-1]["quality"]["focus"]
        log_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = runs.segbatch("process", tmp_path)

    assert done.returncode == 0, done.stderr
    assert '"judged by another version": 2' in done.stderr
    assert runs.outcomes(tmp_path) == before
    assert all("focus" in record["quality"] for record in runs.records(tmp_path))


@pytest.mark.parametrize("line", [0, 2, 4])
def test_a_line_deleted_from_a_log_is_noticed(tmp_path: Path, line: int) -> None:
    """A stack's log without one of its lines, be it the last, is made whole again."""
    write_raw(tmp_path / "s.tif", range(5))
    process_here(tmp_path)
    before = runs.outcomes(tmp_path)
    lines = (tmp_path / "s_qc.jsonl").read_bytes().splitlines(keepends=True)
    del lines[line]
    (tmp_path / "s_qc.jsonl").write_bytes(b"".join(lines))
    process_here(tmp_path)

    assert runs.outcomes(tmp_path) == before


@pytest.mark.parametrize("size", [0, 1, 300])
@pytest.mark.parametrize("name", ["a_qc.json", "s_qc.jsonl"])
def test_a_truncated_log_is_made_again(tmp_path: Path, name: str, size: int) -> None:
    """A QC log that was cut anywhere costs its frames another pass, under the same names."""
    write_raw(tmp_path / "a.tif", [1])
    write_raw(tmp_path / "s.tif", range(10, 13))
    process_here(tmp_path)
    before, files = runs.outcomes(tmp_path), written(tmp_path)
    os.truncate(tmp_path / name, size)
    process_here(tmp_path)

    assert runs.outcomes(tmp_path) == before
    assert written(tmp_path).keys() == files.keys()


@pytest.mark.parametrize("count", [1, 3])
def test_an_old_log_never_vouches_for_a_newer_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A run that dies between mask and log leaves nothing that the old settings take for theirs."""
    write_raw(tmp_path / "s.tif", range(count))
    process_here(tmp_path)
    before = runs.outcomes(tmp_path)
    log_name = "s_qc.json" if count == 1 else "s_qc.jsonl"

    def dies(*_: Any, **__: Any) -> Any:
        raise SystemError("the process ends here")

    with monkeypatch.context() as patch:
        if count == 1:
            patch.setattr(single, "write_whole", dies)
        else:
            whole = stack.whole_file
            patch.setattr(
                stack,
                "whole_file",
                lambda path: dies() if path.name == log_name else whole(path),
            )
        with pytest.raises(SystemError):
            process_here(tmp_path, threshold=0.99)
    assert not (tmp_path / log_name).exists()
    process_here(tmp_path)

    assert runs.outcomes(tmp_path) == before
    assert runs.hidden_files(tmp_path) == []
