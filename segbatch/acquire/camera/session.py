"""The camera of a service: opened, driven and opened again, for weeks, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from segbatch.acquire.camera.door import PORT, open_camera
from segbatch.acquire.camera.errors import CameraBusyError, NoRoomError
from segbatch.acquire.camera.ledger import Counts
from segbatch.acquire.camera.left import settle_all_cut_off
from segbatch.acquire.camera.record import new_run_folder
from segbatch.acquire.camera.room import free_bytes, no_room
from segbatch.acquire.camera.run import Run
from segbatch.acquire.camera.status import CameraStatus, Retry, State
from segbatch.acquire.camera.waits import DiskWaits
from segbatch.errors import SegbatchError, SettingsError, StorageError
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.acquire.camera.camera import Camera
    from segbatch.settings.sections import CameraSettings

_logger = get_logger(__name__)


class CameraSession:
    """Drives the camera until it is stopped or has taken its frames; never raises into its owner.

    Whatever goes wrong is a state, and is tried again after 1 s, then after
    twice as long each time, up to a minute.

    Parameters
    ----------
    settings
        The camera and its runs, which are new folders in ``settings.out``.
    on_change
        Called from the session's thread after each change of ``status``.
    port
        Of Micro-Manager's server.
    min_free_gib
        Room on the disk below which no frame is taken. May be set anew at any time, for the next
        run.
    """

    def __init__(
        self,
        settings: CameraSettings,
        on_change: Callable[[], None],
        *,
        port: int = PORT,
        min_free_gib: float = 0.0,
    ) -> None:
        self.min_free_gib = min_free_gib
        self._settings = settings
        self._on_change = on_change
        self._port = port
        self._status = CameraStatus()
        self._retry = Retry()
        self._waits = DiskWaits()
        self._before = Counts()
        self._counts = Counts()
        self._has_settled = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> CameraStatus:
        """Where the camera stands now."""
        status = self._retry.told_in(self._status)
        waits = self._waits.told(self._settings.out)
        if waits is None:
            return status
        error = waits if status.error is None else f"{status.error}; {waits}"
        return msgspec.structs.replace(status, error=error)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread = threading.Thread(target=self._work, name="camera-session", daemon=True)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the run under way ended and the camera let go; returns at once, any thread may ask.

        Not from a signal handler: what it interrupted may hold the lock that this takes.
        """
        self._stop.set()

    def stop(self, timeout_s: float) -> bool:
        """Ask to stop; return whether the run was ended and the camera let go in time."""
        self.ask_to_stop()
        return self.wait(timeout_s)

    def wait(self, timeout_s: float) -> bool:
        """Return whether it has ended, of itself or as asked, within that time."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._stop.is_set() and not self._is_done():
            begun = time.monotonic()
            error = self._attempt()
            if error is None:
                continue
            retry_s = self._retry.after(time.monotonic() - begun)
            passes = isinstance(error, CameraBusyError | NoRoomError)
            state: State = "waiting" if passes else "failed"
            self._set(state=state, error=str(error))
            _logger.warning("camera " + state, error=str(error), retry_in_s=retry_s)
            self._retry.wait(self._stop)
        self._set(state="off", error=None)

    def _attempt(self) -> Exception | None:
        """Open the camera, take one run, close it; return what went wrong."""
        camera: Camera | None = None
        try:
            if not self._settings.out:
                raise SettingsError(
                    "camera.out is empty", "a folder for the camera's runs", "set camera.out"
                )
            out, settings = Path(self._settings.out), self._settings
            with self._waits.on("to be looked at"):
                self._settle_cut_off(out)
                self._require_room(out)
            self._set(state="connecting", error=None)
            camera = open_camera(self._settings, port=self._port)
            if settings.frames:
                left = settings.frames - self._status.frames_taken
                settings = msgspec.structs.replace(settings, frames=left)
            Run(
                camera,
                settings,
                lambda: new_run_folder(out),
                self._follow,
                min_free_gib=self.min_free_gib,
                waits=self._waits,
            ).take(self._stop)
        except (SegbatchError, OSError) as error:
            return error
        except Exception as error:
            # A fault of ours must not end the folders' work; it is told with its place.
            _logger.exception("camera session failed")
            return error
        finally:
            self._before, self._counts = self._counts.after(self._before), Counts()
            if camera is not None and not camera.close():
                _logger.error("camera did not let go in time", pending=camera.calls.silent)
        return None

    def _settle_cut_off(self, out: Path) -> None:
        """Once, as soon as the folder is there: before a run of ours begins."""
        if not self._has_settled and out.is_dir():
            self._has_settled = True
            settle_all_cut_off(out)

    def _require_room(self, out: Path) -> None:
        """Look at the disk before the camera is opened, and a folder made, for nothing."""
        there = next((each for each in (out, *out.absolute().parents) if each.exists()), None)
        if there is None:
            raise StorageError(
                f"camera.out {out}: its drive or share is not there",
                "a folder for the camera's runs",
                "bring it back, or set camera.out",
            )
        free, needed = free_bytes(there), round(self.min_free_gib * 2**30)
        if free is not None and free < needed:
            raise no_room(out, free, needed)

    def _is_done(self) -> bool:
        return 0 < self._settings.frames <= self._status.frames_taken

    def _follow(self, folder: Path, counts: Counts) -> None:
        self._counts = counts
        self._set(state="acquiring", run=str(folder))

    def _set(self, *, state: State, run: str | None = None, error: str | None = None) -> None:
        run = self._status.run if run is None else run
        status = CameraStatus(state=state, run=run, error=error)
        self._status = status.counting(self._counts.after(self._before))
        self._on_change()
