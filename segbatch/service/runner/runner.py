"""The service: start, loop, drain, stop."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from segbatch import __version__, log
from segbatch.acquire.camera.apart import CameraProcess
from segbatch.acquire.camera.status import CameraStatus
from segbatch.acquire.source import Source, open_source
from segbatch.errors import EngineError, SegbatchError, UsageError
from segbatch.heap import Heap
from segbatch.service.monitor.monitor import Monitor
from segbatch.service.monitor.pages import Pages
from segbatch.service.monitor.status import EngineStatus, FolderStatus, ServiceStatus
from segbatch.service.notify import Notifier
from segbatch.service.priority import all_processors, give_way, leave_a_processor_free
from segbatch.service.process import Process
from segbatch.service.record.atomic import discard_live_partials
from segbatch.service.runner.beat import Beat
from segbatch.service.runner.states import State, StateMachine
from segbatch.service.runner.tree import Tree
from segbatch.service.under_way import UnderWay
from segbatch.settings import Settings
from segbatch.settings.sections import WatchSettings

LONGEST_WAIT_S = 1.0  # between two looks at signals, trees and the watchdog
SLICE_S = 2.0  # for which one run is worked on while others wait
STATUS_EVERY_S = 5.0
PAGES_RETRY_S = 30.0
CAMERA_ENDS_S = 8.0  # in which a camera's process that hangs is killed, and its record written
LETTING_GO_S = 30  # longest that closing takes when nothing is under way any more
ENGINE_OPENS_S = 600  # longest that an engine may take to be built
FULL_FRAME_PX = (1080, 1440)  # (Y, X) of a Zelux CS165MU
_logger = log.get_logger(__name__)


class Runner:
    """Watches trees and drives the camera until it is told to stop.

    ``start``, then ``loop`` until it returns, then ``drain`` and ``stop``.

    Parameters
    ----------
    load_settings
        Reads the settings, at the start and at each reload.
    state_folder
        Of this service alone: what it notes for its next start.
    stop
        Set from outside to end.
    exit_code
        Says what the process ends with where frames under way take too long to finish.
    """

    def __init__(
        self,
        load_settings: Callable[[], Settings],
        state_folder: Path,
        stop: threading.Event,
        exit_code: Callable[[], int],
    ) -> None:
        self._load_settings = load_settings
        self._settings = load_settings()
        self._stop, self._exit_code = stop, exit_code
        self._drained = threading.Event()
        self._notifier = Notifier()
        self._machine = StateMachine()
        self._wake = threading.Event()
        # A plain value: the signal may interrupt whoever holds the lock of an event.
        self._reload_asked = False
        self._monitor = Monitor()
        self._beat = Beat(self._monitor, self._notifier.fed_by_work)
        self._under_way = UnderWay(state_folder)
        self._process = self._new_process(self._settings)
        self._trees: list[Tree] = []
        self._camera: CameraProcess | None = None
        self._pages: Pages | None = None
        self._pages_at, self._no_pages = 0.0, ""
        self._started = time.monotonic()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._status_at = float("-inf")
        self._heap = Heap()

    def start(self) -> None:
        """Open the engine, the pages, the trees and the camera; then say that it is ready.

        Raises
        ------
        SegbatchError
            The engine, the model or the address of the pages cannot be used.
        """
        threading.Thread(target=self._bound_the_drain, name="drain-bound", daemon=True).start()
        self._notifier.extend_timeout(ENGINE_OPENS_S)
        self._notifier.status("opening the engine")
        _warm_up(self._process)
        self._open_pages()
        self._open_trees()
        self._start_camera()
        self._machine.go(State.RUNNING)
        self._notifier.ready(self._line())
        _logger.info("ready", folders=[str(tree.root) for tree in self._trees])

    def loop(self) -> None:
        """Work on what arrives until ``stop`` is set.

        Raises
        ------
        EngineError
            The engine cannot be used any more.
        """
        while not self._stop.is_set():
            if self._reload_asked:
                self._reload_asked = False
                self._do_reload()
            self._look()
            busy = False
            for tree in self._trees:
                busy |= self._try(tree, partial(tree.work, self._slice(tree), self._meanwhile))
            if self._stop.is_set():
                break
            for tree in self._trees:
                busy |= self._try(tree, tree.settle)
            self._notifier.fed_by_work()
            self._heap.tidy(busy=busy)
            if not (busy or self._stop.is_set() or self._reload_asked):
                due = min((tree.due_in_s for tree in self._trees), default=LONGEST_WAIT_S)
                self._wake.wait(min(due, LONGEST_WAIT_S))
                self._wake.clear()

    def drain(self) -> None:
        """Let go of the trees and the camera; what is left is for the next start."""
        self._machine.go(State.DRAINING)
        self._stop_camera()
        left = sum(tree.close() for tree in self._trees)
        _logger.info("drained", files_left_for_the_next_start=left)

    def stop(self) -> None:
        """Close what is left open."""
        if self._pages is not None:
            self._pages.close()
        self._process.close()
        self._under_way.close()
        self._machine.go(State.STOPPED)
        self._drained.set()

    def ask_to_reload(self) -> None:
        """Have the settings read again; callable from a signal handler."""
        self._reload_asked = True

    def status(self) -> ServiceStatus:
        """Return what is to be said of the service; any thread may ask."""
        told = self._machine.status
        folders = [tree.status() for tree in self._trees]
        camera = self._camera.status if self._camera is not None else None
        seen = self._monitor.totals()
        return ServiceStatus(
            state=State.DRAINING if self._is_draining else told.state,
            why=told.why or "; ".join(self._troubles(folders, camera)),
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            uptime_s=round(time.monotonic() - self._started, 1),
            backlog=sum(folder.pending + folder.backlog for folder in folders),
            frames=seen.frames,
            reasons=seen.reasons,
            frames_per_s=seen.frames_per_s,
            dropped=camera.dropped if camera is not None else 0,
            last_frame_at=seen.last_frame_at,
            last_frame=seen.last_frame,
            folders=folders,
            engine=self._engine_status(),
            camera=msgspec.to_builtins(camera) if camera is not None else None,
        )

    @staticmethod
    def _troubles(folders: list[FolderStatus], camera: CameraStatus | None) -> Iterator[str]:
        troubled = sum(folder.error is not None for folder in folders)
        if troubled:
            yield f"{troubled} of {len(folders)} folders in trouble"
        if camera is not None and camera.error is not None:
            yield f"camera {camera.state}: {camera.error}"

    @property
    def _is_draining(self) -> bool:
        return self._stop.is_set() and not self._drained.is_set()

    def _bound_the_drain(self) -> None:
        """End the process where frames under way are not finished in time."""
        self._stop.wait()
        self._notifier.stopping()
        self._notifier.extend_timeout(self._settings.serve.drain_s + LETTING_GO_S)
        if (camera := self._camera) is not None:
            camera.ask_to_stop()  # its frames take as long to reach the disk as those under way
        if not self._drained.wait(self._settings.serve.drain_s):
            _logger.error(
                "drained for too long: frames under way are left for the next start",
                files_left_for_the_next_start=sum(tree.backlog for tree in self._trees),
            )
            discard_live_partials()
            os._exit(self._exit_code())

    def _look(self) -> None:
        for tree in self._trees:
            self._try(tree, tree.look)
        self._say_how_it_goes()

    @staticmethod
    def _try(tree: Tree, step: Callable[[], bool | None]) -> bool:
        """Take a step in one tree; an error that nobody foresaw must not reach the others."""
        try:
            return bool(step())
        except EngineError:
            raise
        except Exception as error:
            _logger.exception("unexpected error; the folder is begun anew", folder=str(tree.root))
            tree.begin_anew(error)
            return False

    def _meanwhile(self) -> None:
        """Take in what arrives while frames are worked on."""
        if not self._stop.is_set():
            self._look()

    def _slice(self, tree: Tree) -> Callable[[], bool]:
        """Return what tells a run of a tree that it is another one's turn."""
        end = time.monotonic() + SLICE_S

        def enough() -> bool:
            if self._reload_asked or tree.is_short_of_space:
                return True
            others = sum(tree.runs_waiting for tree in self._trees) > 1
            return others and time.monotonic() >= end

        return enough

    def _say_how_it_goes(self) -> None:
        if self._trees and all(tree.is_short_of_space for tree in self._trees):
            short = ", ".join(str(tree.out) for tree in self._trees)
            why = f"less than {self._settings.serve.min_free_gib:g} GiB left for {short}"
            if self._machine.go(State.PAUSED, why):
                _logger.error("paused", why=why)
        elif self._machine.go(State.RUNNING):
            _logger.info("goes on: there is room again")
        if time.monotonic() - self._status_at >= STATUS_EVERY_S:
            self._status_at = time.monotonic()
            self._notifier.status(self._line())
        if self._pages is None and time.monotonic() >= self._pages_at:
            self._open_pages()

    def _line(self) -> str:
        status = self.status()
        done = ", ".join(f"{count} {name}" for name, count in status.frames.items() if count)
        trouble = [f"{f.path}: {f.error}" for f in status.folders if f.error]
        parts = [
            status.why or status.state,
            f"{status.backlog} files waiting",
            f"{status.frames_per_s:.1f} frames/s",
            done or "no frames yet",
            *trouble,
        ]
        return "; ".join(parts)

    def _do_reload(self) -> None:
        """Go on with new settings, or with the old ones where the new ones are no good."""
        self._machine.go(State.RELOADING)
        self._notifier.reloading()
        self._notifier.extend_timeout(ENGINE_OPENS_S)
        process: Process | None = None
        try:
            settings = self._load_settings()
            process = self._new_process(settings)
            _warm_up(process)
        except SegbatchError as error:
            if process is not None:
                process.close()
            _logger.error("settings not taken; the old ones stay", why=str(error))
        else:
            self._take_over(settings, process)
            _logger.info("settings read again", folders=[str(tree.root) for tree in self._trees])
        self._machine.go(State.RUNNING)
        self._notifier.ready(self._line())

    def _take_over(self, settings: Settings, process: Process) -> None:
        """Go on with settings that are sound and an engine that runs: nothing here may fail."""
        before, self._settings = self._settings, settings
        for tree in self._trees:
            tree.close()
        self._process.close()
        self._process = process
        self._open_trees()
        if settings.camera != before.camera:  # else it goes on undisturbed
            self._stop_camera()
            self._start_camera()
        elif self._camera is not None:
            self._camera.min_free_gib = settings.serve.min_free_gib
        if settings.serve.listen != before.serve.listen:
            self._open_pages()

    def _new_process(self, settings: Settings) -> Process:
        leave_a_processor_free(settings.camera.enabled)
        return Process(settings, self._stop, self._beat, keep_other=True, under_way=self._under_way)

    def _open_trees(self) -> None:
        watches = list(self._settings.watch)
        camera = self._settings.camera
        if camera.enabled and not any(_lies_in(camera.out, watch.path) for watch in watches):
            watches.append(WatchSettings(path=camera.out))
        self._trees = [
            Tree(watch, self._settings.serve, self._process, self._wake.set) for watch in watches
        ]

    def _start_camera(self) -> None:
        camera = self._settings.camera
        if camera.enabled:
            self._camera = CameraProcess(
                camera,
                self._wake.set,
                min_free_gib=self._settings.serve.min_free_gib,
                processors=all_processors(),
            )
            self._camera.start()

    def _stop_camera(self) -> None:
        if self._camera is not None:
            # Less than the whole drain, at whose end this process ends: a camera's process that
            # hangs has to be killed before, and its run brought to an end.
            drain_s = self._settings.serve.drain_s
            self._camera.stop(max(drain_s - CAMERA_ENDS_S, drain_s / 2))
            self._camera = None

    def _open_pages(self) -> None:
        if self._pages is not None:
            self._pages.close()
            self._pages = None
        if not self._settings.serve.listen:
            self._pages_at = math.inf
            return
        try:
            pages = Pages(self._settings.serve.listen, self._monitor, self.status, self._open_raw)
            pages.start()
        except UsageError as error:  # frames matter more than the page that tells of them
            if str(error) != self._no_pages:
                _logger.error("no live page and no metrics: tried again", why=str(error))
            self._no_pages = str(error)
            self._pages_at = time.monotonic() + PAGES_RETRY_S
        else:
            self._no_pages = ""
            self._pages = pages
            _logger.info("live page, metrics and health", url=pages.url)

    def _open_raw(self, raw: Path) -> Source:
        settings = self._settings
        return open_source(
            raw,
            bit_depth=settings.bit_depth,
            profile=settings.profile,
            max_file_gib=settings.max_file_gib,
        )

    def _engine_status(self) -> EngineStatus | None:
        info = self._process.engine_info
        if info is None:
            return None
        return EngineStatus(
            name=info.engine, precision=info.precision, model=info.name, model_sha256=info.sha256
        )


def _lies_in(inner: str, outer: str) -> bool:
    """Compare names alone: a share that hangs must not be asked."""
    return Path(os.path.abspath(inner)).is_relative_to(os.path.abspath(outer))  # noqa: PTH100


def _warm_up(process: Process) -> None:
    """Open the engine, and let it prepare for the camera's whole frames.

    In a thread that gives way to others, as all threads then do that the engine starts.
    """

    def warm_up() -> None:
        give_way()
        process.segmenter().segment(np.zeros(FULL_FRAME_PX, np.uint16), 16)

    with ThreadPoolExecutor(1, "warm-up") as thread:
        thread.submit(warm_up).result()
