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

    An observer looks at every folder of the tree before it is at work, and
    lets go only between two looks: hours on a slow share. So one thread of its
    own starts and stops it, and neither ``start`` nor ``stop`` waits for that.

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
        Called when there is something new, from another thread; also once the
        observer is at work, or is known not to be.

    Attributes
    ----------
    refused
        Why the folder cannot be watched, empty where it can; valid once ``is_settled``.
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
        self.refused = ""
        self._observer: BaseObserver | None = None
        self._settled, self._stopping = threading.Event(), threading.Event()
        self._relay = _Relay(self.note_loss, self._stopping)
        self._log = get_logger(__name__)

    def start(self) -> None:
        """Begin to watch; ``is_settled`` tells when it has begun."""
        # New folders are often watched twice; where warnings are errors, that ends its thread.
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
        threading.Thread(target=self._keep, name="hints", daemon=True).start()

    def stop(self) -> None:
        """Stop watching; nothing is noted from here on."""
        self._stopping.set()

    @property
    def is_settled(self) -> bool:
        """Whether the observer is at work, or ``refused`` says why not."""
        return self._settled.is_set()

    def _keep(self) -> None:
        """Start the observer, wait, and stop it: the life of its thread."""
        logging.getLogger("watchdog").addHandler(self._relay)
        try:
            self._observer = observer = self._begin()
            self._settled.set()
            if not self._stopping.is_set():
                self._wake()
            if observer is not None:
                self._stopping.wait()
                with suppress(OSError, RuntimeError):
                    observer.stop()
                    observer.join()
        finally:
            logging.getLogger("watchdog").removeHandler(self._relay)

    def _begin(self) -> BaseObserver | None:
        observer: BaseObserver | None = None
        try:
            observer = self._make()
            handler = _Handler(self._note)
            wanted = _INOTIFY_EVENTS if self.kind == "inotify" else _OTHER_EVENTS
            observer.schedule(handler, self._watched, recursive=True, event_filter=wanted)
            observer.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
            if observer is not None:
                with suppress(OSError, RuntimeError):  # half started, or not at all
                    observer.stop()
            told = getattr(error, "strerror", None) or str(error)
            remedy = _REMEDY.get(getattr(error, "errno", 0), "check the folder and its mode")
            if not self._stopping.is_set():
                self._log.warning(
                    "no events from this folder: it is rescanned instead",
                    folder=str(self.root),
                    error=told,
                    remedy=remedy,
                )
            self.refused = f"no events ({told}): {remedy}"
            return None
        return observer

    @property
    def is_alive(self) -> bool:
        """Whether all threads that watch are at work, or are about to be."""
        if not self.is_settled:
            return True
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
        if not (before or self._stopping.is_set()):
            self._wake()

    def _make(self) -> BaseObserver:
        if self.kind != "polling":
            return NativeObserver()
        paced = partial(_PacedEmitter, stat=os.lstat, listdir=self._polled)
        return BaseObserver(paced, timeout=self._polled_s)  # type: ignore[arg-type]

    def _polled(self, folder: str | None) -> Iterator[os.DirEntry[str]]:
        if self._stopping.is_set():
            return iter(())  # a look that is under way ends soon
        return self._entries(self._named(folder or self._watched))

    def _named(self, path: bytes | str) -> str:
        """Return a path as the caller spells it, below ``root``."""
        text = os.fsdecode(path)
        below = text.removeprefix(self._watched)
        return text if below == text else str(self.root) + below

    def _note(self, event: events.FileSystemEvent) -> None:
        if self._stopping.is_set():
            return
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
    """Puts watchdog's warnings into the log, and takes each as a loss of hints.

    Not while it is ``stopping``: then they tell of its own threads that end.
    """

    def __init__(self, note_loss: Callable[[], None], stopping: threading.Event) -> None:
        super().__init__(logging.WARNING)
        self._note_loss, self._stopping = note_loss, stopping

    def emit(self, record: logging.LogRecord) -> None:
        if self._stopping.is_set():
            return
        get_logger(__name__).warning(
            "the file watcher reports trouble: a rescan follows", detail=record.getMessage()
        )
        self._note_loss()
