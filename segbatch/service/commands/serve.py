"""``segbatch serve``: the service, in the foreground, until a signal ends it."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from segbatch import log
from segbatch.errors import SegbatchError, UsageError
from segbatch.heap import bound_the_heap
from segbatch.service.monitor.address import parse_listen
from segbatch.service.runner.runner import Runner
from segbatch.service.signals import stop_on_signals
from segbatch.settings import Settings
from segbatch.settings.sections import WatchSettings

_logger = log.get_logger(__name__)


def serve_command(folders: Sequence[str], load_settings: Callable[[], Settings]) -> int:
    """Serve the folders that are named and those of the settings; return the exit code.

    130 and 143 stopped by a signal, after frames under way were finished.
    Errors that end the service are raised with theirs.
    """
    bound_the_heap()

    def load() -> Settings:
        settings = load_settings()
        named = tuple(WatchSettings(path=folder) for folder in folders)
        settings = msgspec.structs.replace(settings, watch=(*settings.watch, *named))
        _require_sound(settings)
        for name in ("out", "redo"):
            if getattr(settings, name):
                _logger.warning("setting left aside: it is for process alone", setting=name)
        return settings

    with stop_on_signals() as stopper:
        runner = Runner(load, _state_folder(load()), stopper.event, lambda: stopper.exit_code or 1)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda *_: runner.ask_to_reload())
        try:
            runner.start()
            runner.loop()
        except SegbatchError as error:
            if stopper.exit_code is None:
                raise
            # The signal reached the trial of an engine too, and ended it.
            _logger.info("stopped before the engine was open", why=str(error))
        finally:
            stopper.event.set()
            runner.drain()
            runner.stop()
    return stopper.exit_code or 1


def _state_folder(settings: Settings) -> Path:
    """Return a folder for what this service notes: of systemd, or of the user, by its trees."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "segbatch"
    names = sorted(str(_absolute(watch.path)) for watch in settings.watch)
    names.append(settings.camera.out)
    digest = hashlib.blake2b("\n".join(names).encode(), digest_size=6).hexdigest()
    return home / digest


def _require_sound(settings: Settings) -> None:
    """Raise UsageError where the settings name nothing to serve, or trees inside each other."""
    camera = settings.camera
    if not (settings.watch or camera.enabled):
        raise UsageError(
            "no folder to watch and no camera to drive",
            "a [[watch]] table with a path, or camera.enabled = true",
            "name a folder: segbatch serve /data/incoming",
        )
    if camera.enabled and not camera.out:
        raise UsageError(
            "camera.enabled without camera.out", "a folder for its frames", "set camera.out"
        )
    for watch in settings.watch:
        if not watch.path or _absolute(watch.path) == Path(_absolute(watch.path).anchor):
            raise UsageError(
                f"watch.path = {watch.path!r}", "a folder for frames", "name the folder itself"
            )
    if settings.serve.listen:
        parse_listen(settings.serve.listen)
    paths = [_absolute(watch.path) for watch in settings.watch]
    for number, inner in enumerate(paths):
        for other, outer in enumerate(paths):
            if number != other and inner.is_relative_to(outer):
                raise UsageError(
                    f"{inner} is watched, and so is {outer}",
                    "watched folders apart from each other",
                    f"leave out {inner}: what lies below {outer} is watched with it",
                )
    _require_results_apart(settings)


def _require_results_apart(settings: Settings) -> None:
    """Raise UsageError where the results of one tree would lie in another, or mix with its own."""
    places = [(watch.path, watch.out) for watch in settings.watch]
    for number, (path, out) in enumerate(places):
        for other, (outer, outer_out) in enumerate(places):
            if not out or number == other:
                continue
            for taken in filter(None, (outer, outer_out)):
                if _absolute(out).is_relative_to(_absolute(taken)):
                    raise UsageError(
                        f"watch.out = {out!r} of {path} lies in {taken!r} of {outer}",
                        "a folder for the results of each watched folder",
                        f"give {path} another out",
                    )


def _absolute(path: str) -> Path:
    """Complete a path by its name alone: a share that hangs must not be asked."""
    return Path(os.path.abspath(path))  # noqa: PTH100
