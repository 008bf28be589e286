"""The parts that a run is made of, each by itself: turns, memory, counts, locks, many classes."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile

from segbatch.errors import StorageError
from segbatch.service.crew import ByteBudget
from segbatch.service.progress import Progress
from segbatch.service.record import lock as lock_module
from segbatch.service.record.lock import LOCK_NAME, folder_lock
from segbatch.service.record.names import Register
from segbatch.service.record.products import Products, page_of
from segbatch.service.record.recorder import Keep
from segbatch.service.record.schema import QcRecord
from segbatch.service.record.single import SingleRecorder
from segbatch.service.record.stack import StackPatcher, StackRecorder, read_lines
from segbatch.service.turns import Turns
from tests.service.test_recording import identity_mask, record_of

PATIENCE_S = 30.0  # for threads that should come at once; a deadlock takes all of it


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Run ``work`` in so many threads; fails where one of them never ends."""
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work, number) for number in range(count)]:
            future.result(PATIENCE_S)


def test_turns_come_in_the_order_of_the_tickets() -> None:
    """Threads that take tickets in order have their turns in order, however long each takes."""
    turns, order = Turns(), list[int]()
    tickets, taking = itertools.count(), threading.Lock()
    chance = random.Random(3)  # noqa: S311 - repeatable delays, no secrets
    delays = [chance.uniform(0, 0.002) for _ in range(200)]

    def work(_: int) -> None:
        while True:
            with taking:
                ticket = next(tickets)
            if ticket >= len(delays):
                return
            time.sleep(delays[ticket])
            turns.wait(ticket)
            order.append(ticket)
            turns.passed(ticket)

    in_threads(8, work)

    assert order == list(range(200))


def test_tickets_that_are_given_up_hold_nobody_up() -> None:
    """A ticket given up before its turn, or twice, is passed over; the others keep their order."""
    turns, order = Turns(), list[int]()
    tickets, taking = itertools.count(), threading.Lock()

    def work(_: int) -> None:
        while True:
            with taking:
                ticket = next(tickets)
            if ticket >= 200:
                return
            if ticket % 3 == 0:  # as a frame that cannot be read
                turns.passed(ticket)
                turns.passed(ticket)
                continue
            turns.wait(ticket)
            order.append(ticket)
            turns.passed(ticket)
            turns.passed(ticket)

    in_threads(8, work)

    assert order == [ticket for ticket in range(200) if ticket % 3]


def test_a_later_ticket_waits_for_every_earlier_one() -> None:
    """Nobody has a turn while one ticket before it has neither passed nor given up."""
    turns, through = Turns(), threading.Event()

    def last() -> None:
        turns.wait(3)
        through.set()

    thread = threading.Thread(target=last)
    thread.start()
    for ticket in (2, 0):
        turns.passed(ticket)
    assert not through.wait(0.05)
    turns.passed(1)

    assert through.wait(PATIENCE_S)
    thread.join()


def test_frames_in_memory_stay_within_the_budget() -> None:
    """However many threads ask, the bytes taken together never exceed the bound."""
    budget, guard = ByteBudget(100), threading.Lock()
    taken, most = 0, 0

    def work(number: int) -> None:
        nonlocal taken, most
        chance = random.Random(number)  # noqa: S311 - repeatable sizes, no secrets
        for _ in range(50):
            size = chance.randrange(0, 101)
            budget.take(size)
            with guard:
                taken += size
                most = max(most, taken)
            time.sleep(0)
            with guard:
                taken -= size
            budget.give_back(size)

    in_threads(8, work)

    assert taken == 0
    assert 50 < most <= 100


def test_a_frame_larger_than_the_budget_goes_alone() -> None:
    """A frame above the whole bound waits until nothing is in memory, and then holds it alone."""
    budget = ByteBudget(100)
    budget.take(10)
    large, small = threading.Event(), threading.Event()

    def take(size: int, done: threading.Event) -> None:
        budget.take(size)
        done.set()

    first = threading.Thread(target=take, args=(250, large))
    first.start()
    assert not large.wait(0.05)
    budget.give_back(10)
    assert large.wait(PATIENCE_S)
    second = threading.Thread(target=take, args=(1, small))
    second.start()
    assert not small.wait(0.05)
    budget.give_back(250)
    assert small.wait(PATIENCE_S)
    first.join()
    second.join()


def test_progress_counts_every_outcome_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Frames noted from many threads are all counted, anew after each beginning."""
    with Progress() as progress:
        for count in (10, 25):
            progress.begin("run", 1)
            progress.grow(8 * count - 1)

            def work(number: int, count: int = count) -> None:
                for frame in range(count):
                    progress.note(record_of(frame, segmented=number % 2 == 0))

            in_threads(8, work)
            assert progress.done == 8 * count
            assert progress.rate_per_s > 0

    assert capfd.readouterr().out == ""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Hold a folder's lock in another process until its stdin is closed."""
    script = (
        "import sys; from pathlib import Path; from segbatch.service.record.lock import *\n"
        "with folder_lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_folder_above_or_below_one_that_is_held_is_refused(tmp_path: Path) -> None:
    """While another process holds a folder, so are those above and below it, but not beside it."""
    held = tmp_path / "a" / "b"
    for folder in (held / "c" / "d", tmp_path / "a" / "beside"):
        folder.mkdir(parents=True)
    holder = hold(held)
    for refused in (held, held / "c", held / "c" / "d", tmp_path / "a", tmp_path):
        with pytest.raises(StorageError, match=f"process {holder.pid}"), folder_lock(refused):
            pass
        assert refused == held or not (refused / LOCK_NAME).exists()
    with folder_lock(tmp_path / "a" / "beside"):
        pass
    holder.communicate()

    for free in (held, tmp_path):
        with folder_lock(free):
            assert (free / LOCK_NAME).exists()
    assert list(tmp_path.rglob(LOCK_NAME)) == []


@pytest.mark.parametrize("content", [b'{"pid": 1, "host": "gone", "since": "then"}', b"\xff", b"x"])
def test_a_lock_that_nobody_holds_is_taken_over(tmp_path: Path, content: bytes) -> None:
    """A lock file whose process is gone stops nobody, whatever stands in it."""
    (tmp_path / LOCK_NAME).write_bytes(content)
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_bytes())["pid"] != 1

    assert not (tmp_path / LOCK_NAME).exists()


def test_an_error_inside_lets_go_of_the_folder(tmp_path: Path) -> None:
    """A run that ends in an error leaves no lock behind."""
    with pytest.raises(ValueError, match="wrong"), folder_lock(tmp_path):
        raise ValueError("wrong")
    with folder_lock(tmp_path):
        pass


def test_a_lock_removed_between_open_and_lock_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock file that its holder removed just then is made anew, and the new one is held."""
    try_lock = lock_module._try_lock
    removals = iter([True])

    def removed_meanwhile(handle: object) -> bool:
        if next(removals, False):
            (tmp_path / LOCK_NAME).unlink()
        return try_lock(handle)  # type: ignore[arg-type]

    monkeypatch.setattr(lock_module, "_try_lock", removed_meanwhile)
    with folder_lock(tmp_path):
        assert (tmp_path / LOCK_NAME).exists()
        monkeypatch.undo()
        with pytest.raises(StorageError, match="being processed"), folder_lock(tmp_path):
            pass
        assert (tmp_path / LOCK_NAME).exists()


def _take_turns(folder: Path, counter: Path) -> int:
    """Take the lock again and again; count up a file that only a holder may write."""
    done = 0
    while done < 25:
        try:
            with folder_lock(folder):
                number = int(counter.read_text())
                counter.write_text(str(number + 1))
        except StorageError:
            time.sleep(0.0005)
            continue
        done += 1
    return done


def test_two_processes_never_hold_one_folder(tmp_path: Path) -> None:
    """Processes that take and remove the lock in each other's way never hold it at once."""
    (tmp_path / "run").mkdir()
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        done = pool.starmap(_take_turns, [(tmp_path / "run", counter)] * 3)

    assert int(counter.read_text()) == sum(done) == 75


CLASSES = 3


def classes_of(number: int) -> Products:
    """Return a mask, labels, and probabilities of (K, Y, X) that carry the frame's number."""
    mask = identity_mask(number)
    probabilities = np.stack([mask * (0.25 * (k + 1)) + number for k in range(CLASSES)])
    return Products(
        mask=page_of(mask),
        probabilities=page_of(probabilities.astype(np.float32)),
        labels=page_of(mask.astype(np.uint32) * number),
        pixel_size_um=0.5,
    )


def assert_probabilities(path: Path, numbers: list[int | None]) -> None:
    """Each frame's planes stand in its page; frames without a mask have planes of zeros."""
    with tifffile.TiffFile(path) as file:
        assert file.pages.first.software.startswith("segbatch")
        assert len(file.pages) == len(numbers)
        for page, number in zip(file.pages, numbers, strict=True):
            planes = page.asarray()
            assert (planes.shape, planes.dtype) == ((CLASSES, 37, 53), np.float32)
            for k in range(CLASSES):
                expected = np.zeros((37, 53), np.float32)
                if number is not None:
                    expected = identity_mask(number) * np.float32(0.25 * (k + 1)) + number
                assert np.array_equal(planes[k], expected)


def test_probabilities_of_many_classes_stand_beside_an_ome_stack(tmp_path: Path) -> None:
    """A (K, Y, X) page for each frame is published, patched and copied, rejected ones as zeros."""
    raw = tmp_path / "run.ome.tif"
    names = Register(tmp_path, at_once=True).add([raw])[raw]
    recorder = StackRecorder(names, probabilities=True, labels=True)
    numbers: list[int | None] = [0, None, 2, 3, 4, 5]
    for page in (3, 0, 1, 2, 5, 4):
        number = numbers[page]
        good = number is not None
        products = classes_of(number) if number is not None else None
        recorder.commit(page, record_of(page, segmented=good, file=raw.name), products)
    recorder.finish(("TC", (3, 2)))
    assert_probabilities(names.probabilities, numbers)

    patcher = StackPatcher(names)
    patcher.commit(1, record_of(1, file=raw.name), classes_of(9))
    patcher.commit(4, record_of(4, segmented=False, file=raw.name), None)
    patcher.commit(5, record_of(5, file=raw.name, objects=8), Keep.PRODUCTS)
    patcher.finish(None)
    assert_probabilities(names.probabilities, [0, 9, 2, 3, None, 5])
    with tifffile.TiffFile(names.mask) as file:
        assert (file.series[0].axes, file.series[0].shape) == ("TCYX", (3, 2, 37, 53))
        assert [int(page.asarray().sum()) for page in file.pages] == [1, 10, 3, 4, 0, 6]
    records: list[QcRecord] = read_lines(names.qc_lines) or []
    assert [record.outcome for record in records].count("segmented") == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "run_labels.ome.tif",
        "run_mask.ome.tif",
        "run_prob.ome.tif",
        "run_qc.jsonl",
    ]


def test_probabilities_of_many_classes_stand_beside_a_single_frame(tmp_path: Path) -> None:
    """A single OME frame's probabilities hold one plane for each class."""
    raw = tmp_path / "a.ome.tif"
    names = Register(tmp_path, at_once=True).add([raw])[raw]
    SingleRecorder(names).commit(0, record_of(0, file=raw.name), classes_of(4))

    assert_probabilities(names.probabilities, [4])


def test_a_stack_of_frames_of_several_sizes_is_published(tmp_path: Path) -> None:
    """Frames of other sizes keep them, page by page, also where their mask is blank."""
    raw = tmp_path / "run.ome.tif"
    names = Register(tmp_path, at_once=True).add([raw])[raw]
    recorder = StackRecorder(names, probabilities=False, labels=False)
    shapes = [(37, 53), (20, 30), (37, 53)]
    for number, shape in enumerate(shapes):
        mask = page_of(identity_mask(number, shape))
        products = Products(mask=mask, probabilities=None, labels=None, pixel_size_um=None)
        recorder.commit(number, record_of(number, file=raw.name), products)
    recorder.finish(None)

    with tifffile.TiffFile(names.mask) as file:
        assert [page.shape for page in file.pages] == shapes
        assert [int(page.asarray().sum()) for page in file.pages] == [1, 2, 3]
