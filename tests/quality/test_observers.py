"""Processes that measure frames: the same answers, whatever becomes of the processes."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from segbatch.infer.quality import observers as module
from segbatch.infer.quality.observe import observe
from segbatch.infer.quality.observers import Observers
from segbatch.infer.quality.shared import PLACE_BYTES, SharedFrames

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="processes that measure frames are for Linux"
)


@pytest.fixture
def observers() -> Iterator[Observers]:
    """Lend at most two processes."""
    with Observers(2) as lent:
        yield lent


def frames(count: int) -> list[np.ndarray]:
    """Return frames of noise that differ, each with its number in the first pixel."""
    rng = np.random.default_rng(7)
    made = [rng.poisson(200, (96, 128)).astype(np.uint16) for _ in range(count)]
    for number, pixels in enumerate(made):
        pixels[0, 0] = number
    return made


def children() -> list[psutil.Process]:
    """Return the processes that measure for this one."""
    found = []
    for child in psutil.Process().children():
        try:
            if "segbatch.infer.quality.observer" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def wait_ready(observers: Observers) -> None:
    """Look at frames until a process has answered for this one."""
    pixels = frames(1)[0]
    until = time.monotonic() + 60
    while not observers._idle:
        assert time.monotonic() < until
        observers.observe(pixels, 1023)
        time.sleep(0.02)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<u4", "<f4", "?"])
@pytest.mark.parametrize("shape", [(96, 128), (96, 128, 3), (1, 1), (0, 5)])
def test_another_process_finds_the_same(
    observers: Observers, dtype: str, shape: tuple[int, ...]
) -> None:
    """A frame of any dtype and shape is measured alike here and in another process."""
    wait_ready(observers)
    pixels = np.random.default_rng(3).integers(0, 2, shape).astype(dtype)
    pixels = np.repeat(pixels, 2, axis=0)[::2]  # with gaps between the rows
    ceiling = None if dtype == "<f4" else 1

    assert observers.observe(pixels, ceiling) == observe(pixels, ceiling)


def test_frames_of_many_threads_are_not_mixed_up(observers: Observers) -> None:
    """Each thread gets the answer for its own frame."""
    wait_ready(observers)
    made = frames(64)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pixels: observers.observe(pixels, 1023), made))

    assert found == [observe(pixels, 1023) for pixels in made]
    assert len(children()) <= 2


def test_more_processes_come_with_more_frames(observers: Observers) -> None:
    """A second process is started once frames have to wait for the first."""
    wait_ready(observers)
    rng = np.random.default_rng(7)
    pixels = rng.poisson(200, (1024, 1024)).astype(np.uint16)  # some ms: the others wait meanwhile
    until = time.monotonic() + 60

    with ThreadPoolExecutor(8) as pool:
        while len(children()) < 2:
            assert time.monotonic() < until
            list(pool.map(lambda _: observers.observe(pixels, 1023), range(40)))


def test_the_first_process_is_started_before_the_first_frame(observers: Observers) -> None:
    """Where frames enough are expected one process starts at once, and where few are, none."""
    observers.expect(module.FRAMES_THAT_PAY - 1)
    assert not children()
    observers.expect(module.FRAMES_THAT_PAY)
    observers.expect(module.FRAMES_THAT_PAY)
    assert len(children()) == 1

    wait_ready(observers)
    pixels = frames(1)[0]
    assert observers.observe(pixels, 1023) == observe(pixels, 1023)


def test_a_killed_process_costs_no_frame(observers: Observers) -> None:
    """A frame whose process is killed is measured here, and another process takes its place."""
    wait_ready(observers)
    (child,) = children()
    child.kill()
    child.wait()
    pixels = frames(1)[0]

    assert observers.observe(pixels, 1023) == observe(pixels, 1023)
    wait_ready(observers)
    assert observers.observe(pixels, 1023) == observe(pixels, 1023)


def test_a_process_that_hangs_is_ended(observers: Observers) -> None:
    """A frame whose process gives no answer in time is measured here."""
    wait_ready(observers)
    (child,) = children()
    child.send_signal(signal.SIGSTOP)
    soon = struct.pack("@ll", 0, 200_000)  # instead of ANSWERS_S
    observers._idle[0]._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, soon)
    pixels = frames(1)[0]

    assert observers.observe(pixels, 1023) == observe(pixels, 1023)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_frame_too_large_for_a_place_is_measured_here(observers: Observers) -> None:
    """Frames beyond the limit start no process."""
    pixels = np.zeros((PLACE_BYTES // 2**14 + 1, 2**14), np.uint8)

    observers.observe(pixels, 255)

    assert not children()


def test_closing_ends_every_process_and_measures_on() -> None:
    """After close() no process is left, and frames are measured in the calling thread."""
    with Observers(2) as observers:
        wait_ready(observers)
    pixels = frames(1)[0]

    assert not children()
    assert observers.observe(pixels, 1023) == observe(pixels, 1023)


@pytest.mark.parametrize("interpreter", ["/bin/false", "/nowhere/python"])
def test_frames_are_measured_where_no_process_can_be_started(
    observers: Observers, monkeypatch: pytest.MonkeyPatch, interpreter: str
) -> None:
    """Where processes cannot be started, or end at once, frames are measured here."""
    monkeypatch.setattr(sys, "executable", interpreter)
    pixels = frames(1)[0]

    for _ in range(20):
        assert observers.observe(pixels, 1023) == observe(pixels, 1023)
        time.sleep(0.02)
    assert observers._starting is None


SCRIPT = """
import os, sys, time
import numpy as np
from segbatch.infer.quality.observers import Observers
observers = Observers(1)
while not observers._idle:
    observers.observe(np.ones((64, 64), np.uint16), 1023)
    time.sleep(0.02)
print(observers._idle[0]._child.pid, flush=True)
time.sleep(600)
"""


def test_the_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """A process that measures ends when the one it works for is killed, and signals do not."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        for number in (signal.SIGINT, signal.SIGTERM):
            child.send_signal(number)
        time.sleep(0.2)
        assert child.is_running()
        parent.kill()

    child.wait(30)
    assert not child.is_running()


def test_nobody_waits_for_a_process_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread whose only process was lost while another starts measures by itself."""
    with Observers(2) as observers:
        wait_ready(observers)
        lent = observers._idle.pop()  # as by a thread that measures
        monkeypatch.setattr(module, "CROWDED", 1000)
        found: list[object] = []
        pixels = frames(1)[0]
        waiting = threading.Thread(target=lambda: found.append(observers.observe(pixels, 1023)))
        waiting.start()
        assert observers._shared is not None
        while not observers._changed._waiters:  # type: ignore[attr-defined]
            time.sleep(0.01)
        with observers._changed:
            observers._start(observers._shared)
        observers._give_back(lent, usable=False)
        waiting.join(30)
        assert not waiting.is_alive()

    assert found == [observe(pixels, 1023)]


def test_modules_of_the_current_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the current folder under a module's name is not imported."""
    (tmp_path / "cv2.py").write_text("open('ran', 'w').close()\n")
    (tmp_path / "queue.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with Observers(1) as observers:
        wait_ready(observers)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["cv2.py", "queue.py"]


def test_frames_in_shared_memory_are_not_copied(observers: Observers) -> None:
    """Pixels that were read into lent memory are found there by the other process."""
    wait_ready(observers)
    made = frames(1)[0]
    pixels = observers.empty(made.shape, made.dtype)
    pixels[...] = made
    assert observers._shared is not None
    assert observers._shared.offset_of(pixels) is not None
    assert observers.observe(pixels, 1023) == observe(made, 1023)


def test_a_place_is_lent_again_when_its_last_array_is_gone() -> None:
    """Places are never lent twice at once, and are free when no view on them is left."""
    shared = SharedFrames(3)
    lent = [shared.empty((64, 64), np.uint16) for _ in range(5)]
    offsets = [shared.offset_of(pixels) for pixels in lent]
    assert len(set(offsets[:3])) == 3
    assert offsets[3:] == [None, None]  # ordinary memory
    view = lent[0][3:, 5:]
    del lent
    again = [shared.empty((64, 64), np.uint16) for _ in range(3)]
    assert [shared.offset_of(pixels) for pixels in again].count(None) == 1
    assert not any(np.shares_memory(view, pixels) for pixels in again)
    shared.close()
    again[0][...] = 7  # memory outlives its owner as long as it is looked at
    assert again[0].sum() == 7 * 64 * 64


def test_a_frame_too_large_for_a_place_lies_in_ordinary_memory() -> None:
    """A frame of more than a place is lent ordinary memory, and one of that size a place."""
    shared = SharedFrames(1)
    assert shared.offset_of(shared.empty((PLACE_BYTES + 1,), np.uint8)) is None
    assert shared.offset_of(shared.empty((PLACE_BYTES,), np.uint8)) == 0
    shared.close()


def test_where_no_memory_can_be_shared_frames_are_measured_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A system that lends no shared memory costs no frame, and no process is started."""

    def refused(_name: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refused)
    pixels = frames(1)[0]
    with Observers(2) as observers:
        assert observers.most == 0
        assert observers.empty(pixels.shape, pixels.dtype).shape == pixels.shape
        assert observers.observe(pixels, 1023) == observe(pixels, 1023)
    assert not children()
