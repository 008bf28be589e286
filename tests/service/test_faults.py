"""What gives way while a run goes on: frames, engine, memory, disk, permissions, signals."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from segbatch import log
from segbatch.errors import EngineError, StorageError
from segbatch.frame import hash_pixels
from segbatch.infer.quality import observe as observe_module
from segbatch.infer.quality.verdict import Judge
from segbatch.infer.segment import Segmentation, Segmenter
from segbatch.service import pipeline as pipeline_module
from segbatch.service.commands.process import process_command
from segbatch.service.crew import OpenFile
from segbatch.service.plan import Ledger, PlannedFile
from segbatch.service.process import Process
from segbatch.service.progress import Progress
from segbatch.service.record.schema import QcRecord
from segbatch.service.record.single import SingleRecorder
from segbatch.service.record.stack import StackPatcher, StackRecorder
from segbatch.service.selection import select
from segbatch.service.signals import stop_on_signals
from segbatch.settings import Settings
from tests.service import runs
from tests.service.test_changes import (
    StopAfter,
    masks,
    pixels_of,
    process_here,
    segmented,
    told,
    write_raw,
    written,
)
from tests.service.test_nothing_lost import as_mere_user, in_mount, needs_mount

ENGINE_ERROR = ("failed", ("engine-error",))


@pytest.fixture(autouse=True)
def _log_as_json() -> None:
    """Send the log to stderr, as the command does."""
    log.configure(json_lines=True)


def device_lost() -> EngineError:
    """Return what an engine raises."""
    return EngineError("the device is lost")


def break_segment(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], numbers: Collection[int] | None
) -> list[str]:
    """Let the engine fail on these frames, None for every one; return the hashes it was given."""
    bad = None if numbers is None else {hash_pixels(pixels_of(number)) for number in numbers}
    given: list[str] = []
    segment = Segmenter.segment

    def failing(self: Segmenter, pixels: np.ndarray, *args: Any, **options: Any) -> Segmentation:
        given.append(hash_pixels(pixels))
        if bad is None or given[-1] in bad:
            raise error()
        return segment(self, pixels, *args, **options)

    monkeypatch.setattr(Segmenter, "segment", failing)
    return given


def command_here(*paths: Path, **settings: Any) -> int:
    """Run the command in this process; return its exit code, also that of an error it raises."""
    try:
        return process_command(
            [str(path) for path in paths], Settings(**settings), dry_run=False, as_json=True
        )
    except (EngineError, StorageError) as error:
        return error.exit_code


def test_a_frame_that_fails_in_a_stack_is_tried_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One frame of five fails with engine-error; the next run segments it and no other."""
    write_raw(tmp_path / "s.tif", range(5))
    with monkeypatch.context() as patch:
        break_segment(patch, device_lost, [2])
        assert command_here(tmp_path) == 1
    assert told(tmp_path) == segmented("s.tif", 5) | {("s.tif", 2): ENGINE_ERROR}
    before = masks(tmp_path / "s_mask.tif")
    assert not before[2].any()
    given = break_segment(monkeypatch, device_lost, [])
    assert command_here(tmp_path) == 0

    assert given == [hash_pixels(pixels_of(2))]
    assert told(tmp_path) == segmented("s.tif", 5)
    after = masks(tmp_path / "s_mask.tif")
    assert after[2].any()
    assert all(np.array_equal(after[page], before[page]) for page in (0, 1, 3, 4))
    assert not any(record["quality"]["provisional"] for record in runs.records(tmp_path))


def test_a_frame_that_keeps_failing_leaves_its_stack_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that fails as it did before is tried, and nothing is written again."""
    write_raw(tmp_path / "s.tif", range(5))
    break_segment(monkeypatch, device_lost, [2])
    process_here(tmp_path)
    files = written(tmp_path)
    report = process_here(tmp_path)

    assert len(report.failed) == 1
    assert written(tmp_path) == files


@pytest.mark.parametrize("stack", [False, True])
def test_bad_frames_in_a_row_do_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: bool
) -> None:
    """While the engine segments a blank frame, frames that fail in a row cost only themselves."""
    if stack:
        write_raw(tmp_path / "s.tif", range(14))
    else:
        for number in range(14):
            write_raw(tmp_path / f"a{number}.tif", [number])
    break_segment(monkeypatch, device_lost, range(1, 13))

    assert command_here(tmp_path) == 1
    found = [outcome for outcome, _ in told(tmp_path).values()]
    assert (found.count("segmented"), found.count("failed")) == (2, 12)


@pytest.mark.parametrize("error", [device_lost, RuntimeError, MemoryError])
def test_a_dead_engine_ends_the_run_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]
) -> None:
    """An engine that fails on everything ends the run; with a sound one the next run finishes."""
    for number in range(14):
        write_raw(tmp_path / f"a{number}.tif", [number])
    with monkeypatch.context() as patch:
        break_segment(patch, error, None)
        assert command_here(tmp_path) == 3
    assert json.loads((tmp_path / "segbatch_run.json").read_text())["state"] == "stopped"
    assert runs.hidden_files(tmp_path) == []
    process_here(tmp_path)

    assert {outcome for outcome, _ in told(tmp_path).values()} == {"segmented"}
    assert len(told(tmp_path)) == 14


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("error", [MemoryError, ValueError])
@pytest.mark.parametrize("place", ["segment", "measure", "judge", "hash", "compress"])
def test_an_error_that_nobody_foresaw_costs_one_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception], stack: bool
) -> None:
    """Memory that runs out, or a fault of the program, on one frame fails that frame alone."""
    if stack:
        write_raw(tmp_path / "s.tif", range(4))
    else:
        for number in range(4):
            write_raw(tmp_path / f"a{number}.tif", [number])
    broken = iter([error()])

    def once(whole: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any, **options: Any) -> Any:
            for fault in broken:
                raise fault
            return whole(*args, **options)

        return failing

    with monkeypatch.context() as patch:
        if place == "segment":
            patch.setattr(Segmenter, "segment", once(Segmenter.segment))
        elif place == "judge":
            patch.setattr(Judge, "judge", once(Judge.judge))
        else:
            module, name = {
                "measure": (observe_module, "measure"),
                "hash": (observe_module, "hash_pixels"),
                "compress": (pipeline_module, "page_of"),
            }[place]
            patch.setattr(module, name, once(getattr(module, name)))
        assert command_here(tmp_path) == 1
    found = list(told(tmp_path).values())
    assert (len(found), found.count(ENGINE_ERROR)) == (4, 1)
    assert command_here(tmp_path) == 0
    assert {outcome for outcome, _ in told(tmp_path).values()} == {"segmented"}


def test_a_stack_that_could_not_be_published_is_published_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure at the end of a stack ends with exit 4; the next run segments nothing again."""
    write_raw(tmp_path / "s.tif", range(5))

    def fails(*_: Any) -> None:
        raise StorageError("the share is gone")

    with monkeypatch.context() as patch:
        patch.setattr(StackRecorder, "finish", fails)
        assert command_here(tmp_path) == 4
    run = json.loads((tmp_path / "segbatch_run.json").read_text())
    assert (run["state"], run["counts"]["segmented"]) == ("stopped", 5)
    given = break_segment(monkeypatch, device_lost, [])
    assert command_here(tmp_path) == 0

    assert given == []
    assert told(tmp_path) == segmented("s.tif", 5)
    assert runs.hidden_files(tmp_path) == []


def test_a_patch_that_could_not_be_published_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure while a stack is patched ends with exit 4 and leaves its log and mask."""
    write_raw(tmp_path / "s.tif", range(5))
    with monkeypatch.context() as patch:
        break_segment(patch, device_lost, [2])
        process_here(tmp_path)
    files = written(tmp_path)

    def fails(*_: Any) -> None:
        raise StorageError("the share is gone")

    with monkeypatch.context() as patch:
        patch.setattr(StackPatcher, "finish", fails)
        assert command_here(tmp_path) == 4
    assert written(tmp_path) == files
    assert command_here(tmp_path) == 0
    assert told(tmp_path) == segmented("s.tif", 5)


@needs_mount
def test_a_disk_that_is_full_of_a_stack_stops_with_4_and_goes_on_later(tmp_path: Path) -> None:
    """While a stack alone is processed a full disk is told without a traceback, and it goes on."""
    raws, disk, back = tmp_path / "raws", tmp_path / "disk", tmp_path / "back"
    raws.mkdir()
    disk.mkdir()
    write_raw(raws / "s.tif", range(40))
    script = f"""
        mount -t tmpfs -o size=48M tmpfs "$2"
        cp -r "$1" "$2/run"
        free=$(df --output=avail -k "$2" | tail -1)
        head -c $((free - 80))K /dev/zero > "$2/filler"
        set +e
        {sys.executable} -m segbatch process "$2/run"; echo "first=$?"
        rm "$2/filler"
        {sys.executable} -m segbatch process "$2/run" --json; echo "second=$?"
        cp -r "$2/run" "$3"
    """
    done = in_mount(script, raws, disk, back)

    assert "first=4" in done.stdout, done.stdout + done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "second=0" in done.stdout, done.stdout + done.stderr
    assert told(back) == segmented("s.tif", 40)
    assert runs.hidden_files(back) == []


@pytest.mark.skipif(as_mere_user() is None, reason="permissions cannot be made to bind here")
@pytest.mark.parametrize("count", [1, 3])
def test_a_log_that_may_not_be_read_is_left_alone(tmp_path: Path, count: int) -> None:
    """A QC log without read permission is not overwritten, and when it may be read, it counts."""
    write_raw(tmp_path / "s.tif", range(count))
    write_raw(tmp_path / "t.tif", [40])
    process_here(tmp_path)
    log_file = tmp_path / ("s_qc.json" if count == 1 else "s_qc.jsonl")
    content = log_file.read_bytes()
    log_file.chmod(0)
    command = [*(as_mere_user() or []), *runs.COMMAND, "process", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode in {1, 4}, done.stderr
    assert "Traceback" not in done.stderr
    assert log_file.name in done.stdout + done.stderr
    log_file.chmod(0o644)
    assert log_file.read_bytes() == content
    assert command_here(tmp_path) == 0
    assert told(tmp_path) == segmented("s.tif", count) | segmented("t.tif")


def test_records_of_other_hands_do_not_end_the_run(tmp_path: Path) -> None:
    """A resumed run takes records without group, rules or standing as they are."""
    write_raw(tmp_path / "a.tif", [1])
    write_raw(tmp_path / "s.tif", range(10, 13))
    process_here(tmp_path)
    for log_file in (tmp_path / "a_qc.json", tmp_path / "s_qc.jsonl"):
        text = log_file.read_text()
        lines = text.splitlines() if log_file.suffix == ".jsonl" else [text]
        records = [json.loads(line) for line in lines]
        for record in records:
            for name in ("group", "rules", "provisional"):
                record["quality"].pop(name)
        log_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert command_here(tmp_path) == 0

    assert told(tmp_path) == segmented("a.tif") | segmented("s.tif", 3)


def test_a_stop_while_the_run_is_planned_ends_it_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it looks at earlier results, a run changes nothing and says interrupted."""
    for number in range(4):
        write_raw(tmp_path / f"a{number}.tif", [number])
    process_here(tmp_path)
    files = written(tmp_path)
    for number in range(4):
        os.utime(tmp_path / f"a{number}.tif")
    stop = threading.Event()
    looked = Ledger.look_up

    def stopping(ledger: Ledger, file: PlannedFile) -> list[Any]:
        stop.set()
        return looked(ledger, file)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "look_up", stopping)
        assert process_here(tmp_path, stop=stop).state == "interrupted"
    assert written(tmp_path).keys() == files.keys()
    assert len(told(tmp_path)) == 4
    assert process_here(tmp_path).state == "complete"
    assert {outcome for outcome, _ in told(tmp_path).values()} == {"segmented"}


@pytest.mark.parametrize(("count", "pairs"), [(1, 14), (3, 5)])
def test_a_stop_during_renewals_is_made_good_by_the_next_run(
    tmp_path: Path, count: int, pairs: int
) -> None:
    """Stopped while the last verdicts are brought home, the next run brings them home."""
    for index in range(pairs):
        for name in ("a", "b"):  # b is a's duplicate
            first = count * index
            write_raw(tmp_path / f"{name}{index}.tif", range(first, first + count))
    process_here(tmp_path)
    for index in range(pairs):  # and is none any more
        first = 100 + count * index
        write_raw(tmp_path / f"a{index}.tif", range(first, first + count))
    stop = threading.Event()
    process = Process(Settings(), stop, StopAfter(stop, pairs * count + 1))
    assert process.run(select([str(tmp_path)])[0]).state == "interrupted"
    process.close()
    between = [outcome for outcome, _ in told(tmp_path).values()]
    assert between.count("rejected") > 0
    process_here(tmp_path)

    expected = {}
    for index in range(pairs):
        expected |= segmented(f"a{index}.tif", count) | segmented(f"b{index}.tif", count)
    assert told(tmp_path) == expected
    assert not any(record["quality"]["provisional"] for record in runs.records(tmp_path))
    assert runs.hidden_files(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_at_any_early_moment_ends_the_process(tmp_path: Path) -> None:
    """SIGTERM at whatever moment ends the process: stopped with 143, killed by it, or finished."""
    for number in range(20):
        write_raw(tmp_path / f"a{number}.tif", [number])
    write_raw(tmp_path / "s.tif", range(20, 40))
    chance = random.Random(7)  # noqa: S311 - repeatable moments, no secrets
    for _ in range(10):
        process = runs.start("process", tmp_path, "--redo")
        time.sleep(chance.uniform(0.0, 1.2))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in {143, -signal.SIGTERM, 0}, errors
        assert "Traceback" not in errors
    assert runs.segbatch("process", tmp_path).returncode == 0
    assert {outcome for outcome, _ in told(tmp_path).values()} == {"segmented"}
    assert len(told(tmp_path)) == 40


def test_a_signal_inside_the_handling_of_a_signal_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second signal ends the process even while the first one is just being noted."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)

    with stop_on_signals() as stopper:

        class Interrupted(threading.Event):
            """Another signal arrives while this event is being set, its lock held."""

            def set(self) -> None:
                stopper.event = threading.Event()
                signal.raise_signal(signal.SIGTERM)
                stopper.event = self
                super().set()

        stopper.event = Interrupted()
        signal.raise_signal(signal.SIGTERM)

    assert ended == [143]


def open_descriptors() -> int:
    """Count the files and pipes that this process holds open.

    Sockets are left out: a bridge of an earlier test to a Micro-Manager that is gone goes on
    trying to reach it, with a new one each time.
    """
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += not str(entry.readlink()).startswith("socket:")
    return found


def open_files() -> int:
    """Count the raw files under way that this process still knows of."""
    return sum(type(each) is OpenFile for each in gc.get_objects())  # isinstance wakes proxies


class Watching(Progress):
    """Notes the most files that were open while frames were recorded."""

    most_descriptors = most_files = 0

    def note(self, record: Any) -> None:
        """Count open files too."""
        super().note(record)
        self.most_descriptors = max(self.most_descriptors, open_descriptors())
        if self.done % 20 == 0:
            self.most_files = max(self.most_files, open_files())


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_open_files_do_not_grow_with_the_run(tmp_path: Path) -> None:
    """Two hundred files later as many are open as at the start, and none is remembered."""
    rng = np.random.default_rng(1)
    for number in range(190):
        tifffile.imwrite(
            tmp_path / f"a{number}.tif", rng.integers(90, 110, (64, 64)).astype(np.uint16)
        )
    for number in range(8):
        write_raw(tmp_path / f"s{number}.tif", range(3 * number, 3 * number + 3))
    (tmp_path / "broken.tif").write_bytes(b"II*\0\x08\0\0\0 this is no image")
    (tmp_path / "empty.tif").write_bytes(b"")
    process_here(tmp_path / "a0.tif")  # what is opened once in a process is open from now on
    gc.collect()
    before, known = open_descriptors(), open_files()
    watching = Watching(quiet=True)
    process = Process(Settings(), threading.Event(), watching)
    process.run(select([str(tmp_path)])[0])
    process.close()
    gc.collect()

    assert open_descriptors() == before
    assert watching.most_descriptors - before < 50
    assert 0 < watching.most_files - known < 30
    assert open_files() == known


def test_a_mask_is_written_before_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a log stands, so does the mask that it names."""
    for number in range(3):
        write_raw(tmp_path / f"a{number}.tif", [number])
    commit = SingleRecorder.commit
    seen: list[bool] = []

    def looking(recorder: SingleRecorder, page: int, record: QcRecord, products: Any) -> QcRecord:
        committed = commit(recorder, page, record, products)
        for path in tmp_path.glob("*_qc.json"):
            found = json.loads(path.read_bytes())
            if found["mask"] is not None:
                seen.append((tmp_path / found["mask"]["file"]).is_file())
        return committed

    monkeypatch.setattr(SingleRecorder, "commit", looking)
    process_here(tmp_path)

    assert seen
    assert all(seen)
