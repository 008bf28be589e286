"""What the operating system tells of a tree: hints of where to look, never the truth.

Events are lost without a word: when the kernel's queue overflows, when new
folders fill before they are watched, on shares, and when limits are reached.
So nothing here is relied upon; a rescan finds what no hint told of.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watchdog import events
from watchdog.observers import Observer as NativeObserver
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingEmitter

from segbatch.acquire.folder.mounts import Observer
from segbatch.log import get_logger

if TYPE_CHECKING:
    from watchdog.observers.api import EventQueue, ObservedWatch

MAX_HINTS = 50_000
_POLLED_SHARE = 20  # a look at a share takes at most one part in so many of the time
_IN_CREATE = 0x100
# Not "modified": a writer of 100 MB/s raises thousands of them a second, and
# files that are not complete yet are looked at again anyway.
_INOTIFY_EVENTS: list[type[events.FileSystemEvent]] = [
    events.FileCreatedEvent,
    events.FileClosedEvent,
    events.FileMovedEvent,
    events.DirCreatedEvent,
    events.DirMovedEvent,
]
_OTHER_EVENTS = [*_INOTIFY_EVENTS, events.FileModifiedEvent]
_REMEDY = {
    errno.ENOSPC: "raise fs.inotify.max_user_watches (sysctl), or watch fewer folders",
    errno.EMFILE: "raise fs.inotify.max_user_instances (sysctl), or the limit of open files",
}


@dataclass(slots=True)
class Touched:
    """What was touched since the last time; ``lost`` where hints are known to be missing.

    ``files`` tells of each path whether it was renamed into place from a name
    that is no image's, which a writer does when the file is complete.
    """

    files: dict[str, bool] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    lost: bool = False


class Hints:
    """Collects hints about one tree from watchdog's threads.

    Parameters
    ----------
    kind
        ``inotify``, ``polling``, or ``native`` for what the platform has.
    polled_s
        Time between two looks of the polling observer.
    entries
        What the polling observer sees of a folder (as ``os.scandir``).
    is_image
        Whether a path bears the name of an image.
    wake
        Called when there is something new, from another thread.
    """

    def __init__(
        self,
        root: Path,
        kind: Observer,
        *,
        polled_s: float,
        entries: Callable[[str], Iterator[os.DirEntry[str]]],
        is_image: Callable[[str], bool],
        wake: Callable[[], None],
    ) -> None:
        self.root, self.kind = root, kind
        # A link is followed here: inotify would watch the link itself.
        self._watched = str(root.resolve())
        self._polled_s, self._entries = polled_s, entries
        self._is_image, self._wake = is_image, wake
        self._guard = threading.Lock()
        self._touched = Touched()
        self._observer: BaseObserver | None = None
        self._relay = _Relay(self.note_loss)
        self._log = get_logger(__name__)

    def start(self) -> str:
        """Start watching; return why that cannot be done, empty where it can."""
        logging.getLogger("watchdog").addHandler(self._relay)
        # New folders are often watched twice; where warnings are errors, that ends its thread.
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
        observer: BaseObserver | None = None
        try:
            observer = self._make()
            handler = _Handler(self._note)
            wanted = _INOTIFY_EVENTS if self.kind == "inotify" else _OTHER_EVENTS
            observer.schedule(handler, self._watched, recursive=True, event_filter=wanted)
            observer.start()
        except OSError as error:
            if observer is not None:
                with suppress(OSError, RuntimeError):  # half started, or not at all
                    observer.stop()
            logging.getLogger("watchdog").removeHandler(self._relay)
            remedy = _REMEDY.get(error.errno or 0, "check the folder and its mode")
            self._log.warning(
                "no events from this folder: it is rescanned instead",
                folder=str(self.root),
                error=error.strerror or str(error),
                remedy=remedy,
            )
            return f"no events ({error.strerror or error}): {remedy}"
        self._observer = observer
        return ""

    def stop(self) -> None:
        """Stop watching."""
        observer, self._observer = self._observer, None
        if observer is not None:
            with suppress(OSError, RuntimeError):
                observer.stop()
                observer.join()
        logging.getLogger("watchdog").removeHandler(self._relay)

    @property
    def is_alive(self) -> bool:
        """Whether all threads that watch are at work."""
        observer = self._observer
        if observer is None or not observer.is_alive():
            return False
        reader = getattr(observer, "_inotify_fd", None)
        threads = [*observer.emitters, *([reader] if isinstance(reader, threading.Thread) else [])]
        return bool(observer.emitters) and all(thread.is_alive() for thread in threads)

    @property
    def has_some(self) -> bool:
        """Whether something was touched since the last ``take``."""
        touched = self._touched
        return bool(touched.files or touched.folders or touched.lost)

    def take(self) -> Touched:
        """Return what was touched since the last call."""
        with self._guard:
            touched, self._touched = self._touched, Touched()
        return touched

    def note_loss(self) -> None:
        """Remember that hints were lost."""
        with self._guard:
            before, self._touched.lost = self._touched.lost, True
        if not before:
            self._wake()

    def _make(self) -> BaseObserver:
        if self.kind != "polling":
            return NativeObserver()
        paced = partial(_PacedEmitter, stat=os.lstat, listdir=self._polled)
        return BaseObserver(paced, timeout=self._polled_s)  # type: ignore[arg-type]

    def _polled(self, folder: str | None) -> Iterator[os.DirEntry[str]]:
        return self._entries(self._named(folder or self._watched))

    def _named(self, path: bytes | str) -> str:
        """Return a path as the caller spells it, below ``root``."""
        text = os.fsdecode(path)
        below = text.removeprefix(self._watched)
        return text if below == text else str(self.root) + below

    def _note(self, event: events.FileSystemEvent) -> None:
        source = self._named(event.src_path)
        target = self._named(event.dest_path) if event.dest_path else ""
        with self._guard:
            touched = self._touched
            first = not self.has_some
            if len(touched.files) + len(touched.folders) >= MAX_HINTS:
                self._touched = Touched(lost=True)
            elif isinstance(event, events.DirCreatedEvent | events.DirMovedEvent):
                touched.folders.add(target or source)
            elif isinstance(event, events.FileMovedEvent):
                in_place = bool(source) and not event.is_synthetic and not self._is_image(source)
                touched.files[target] = in_place
            else:
                touched.files.setdefault(source, False)
        if first:
            self._wake()


def watches_are_exhausted(folder: Path) -> bool:
    """Tell whether inotify's limit of watches is reached.

    watchdog is silent about folders inside a tree that it could not watch.
    Only to be asked where inotify is in use.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return False
    try:
        watch = libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_CREATE)
        return watch < 0 and ctypes.get_errno() == errno.ENOSPC
    finally:
        os.close(descriptor)


class _Handler(events.FileSystemEventHandler):
    def __init__(self, note: Callable[[events.FileSystemEvent], None]) -> None:
        self._note = note

    def dispatch(self, event: events.FileSystemEvent) -> None:
        """Pass every kind of event on."""
        self._note(event)


class _PacedEmitter(PollingEmitter):
    """Looks less often where a look takes long, so that a share is not kept busy."""

    def __init__(self, queue: EventQueue, watch: ObservedWatch, **options: Any) -> None:
        super().__init__(queue, watch, **options)
        self._pause_s = self.timeout

    def queue_events(self, timeout: float) -> None:
        """Wait, look, and queue what changed."""
        started, pause_s = time.monotonic(), self._pause_s
        super().queue_events(pause_s)
        took_s = max(0.0, time.monotonic() - started - pause_s)
        self._pause_s = max(timeout, _POLLED_SHARE * took_s)


class _Relay(logging.Handler):
    """Puts watchdog's warnings into the log, and takes each as a loss of hints."""

    def __init__(self, note_loss: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._note_loss = note_loss

    def emit(self, record: logging.LogRecord) -> None:
        get_logger(__name__).warning(
            "the file watcher reports trouble: a rescan follows", detail=record.getMessage()
        )
        self._note_loss()
