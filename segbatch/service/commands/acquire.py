"""What ``segbatch acquire`` prints, and the exit code it ends with."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
import msgspec

from segbatch import log
from segbatch.acquire.camera.door import open_camera
from segbatch.acquire.camera.left import settle_cut_off
from segbatch.acquire.camera.properties import Change, plan
from segbatch.acquire.camera.record import (
    CameraRecord,
    claim_run_folder,
    new_run_folder,
    require_new,
)
from segbatch.acquire.camera.run import Run
from segbatch.errors import SegbatchError, UsageError
from segbatch.service.signals import stop_on_signals

if TYPE_CHECKING:
    from segbatch.acquire.camera.ledger import Counts
    from segbatch.settings import Settings
    from segbatch.settings.sections import CameraSettings

LINE_EVERY_S = 10.0
_logger = log.get_logger(__name__)


def acquire_command(
    settings: Settings,
    out: str | None,
    properties: Sequence[str],
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Take one run; return the exit code.

    0 every frame is on the disk and none was dropped; 1 the camera dropped
    frames; 130 and 143 stopped by a signal. Errors are raised with theirs.
    """
    camera_settings = msgspec.structs.replace(
        settings.camera, properties={**settings.camera.properties, **_pairs(properties)}
    )
    if out is not None:
        _require_new(Path(out), dry_run=dry_run)
        # It names the one folder that all frames go to.
        camera_settings = msgspec.structs.replace(camera_settings, frames_per_run=0)
    elif not camera_settings.out:
        raise UsageError(
            "no folder for the run", "--out FOLDER", "or camera.out in the settings file"
        )
    with stop_on_signals() as stopper:
        camera = open_camera(camera_settings)
        try:
            if dry_run:
                changes = plan(camera, camera_settings)
                _print_plan(camera.label, changes, camera_settings, out, as_json=as_json)
                return 0

            def folder() -> Path:
                if out is not None:
                    return claim_run_folder(Path(out))
                return new_run_folder(Path(camera_settings.out))

            failure: SegbatchError | None = None
            runs: list[tuple[Path, CameraRecord]] = []
            with _Progress(camera_settings.frames) as progress:
                run = Run(
                    camera,
                    camera_settings,
                    folder,
                    progress.follow,
                    on_folder=lambda *each: runs.append(each),
                    min_free_gib=settings.serve.min_free_gib,
                )
                try:
                    run.take(stopper.event)
                except SegbatchError as error:
                    failure = error
        finally:
            if not camera.close():
                _logger.error("camera did not let go in time", pending=camera.calls.silent)
    if not runs:
        assert failure is not None  # noqa: S101 - a run without a folder has failed
        raise failure
    _print_runs(runs, failure, as_json=as_json)
    if failure is not None and as_json:
        log.report_error(failure)
        return failure.exit_code
    if failure is not None:
        raise failure
    if stopper.exit_code is not None:
        return stopper.exit_code
    return 1 if any(record.dropped for _, record in runs) else 0


def _require_new(folder: Path, *, dry_run: bool) -> None:
    """Refuse a folder that holds a run; one that was cut off there is brought to its end."""
    if not dry_run:
        settle_cut_off(folder)
    require_new(folder)


def roi(text: str | None) -> list[int] | None:
    """Return the numbers of ``X,Y,W,H``."""
    if text is None:
        return None
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--roi-px {text}", "X,Y,W,H in pixels", "as in --roi-px 0,0,720,540"
        ) from (error)
    return [x, y, width, height]


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--property {text}", "NAME=VALUE", "as in --property EEP=On")
        pairs[name.strip()] = value.strip()
    return pairs


def _print_plan(
    label: str,
    changes: Sequence[Change],
    settings: CameraSettings,
    out: str | None,
    *,
    as_json: bool,
) -> None:
    if as_json:
        answer: Mapping[str, Any] = {
            "camera": label,
            "changes": changes,
            "frames": settings.frames,
            "interval_ms": settings.interval_ms,
            "format": settings.format,
            "out": out or settings.out,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
        return
    click.echo(f"camera {label} has every property; this would be set:")
    for change in changes:
        click.echo(f"  {change.name}: {change.now} -> {change.wanted}  ({change.setting})")
    frames = f"{settings.frames} frames" if settings.frames else "frames until it is stopped"
    pace = f"every {settings.interval_ms:g} ms" if settings.interval_ms else "as fast as it goes"
    where = out or f"a new folder in {settings.out}"
    click.echo(f"then {frames}, {pace}, as {settings.format} in {where}")


def _print_runs(
    runs: Sequence[tuple[Path, CameraRecord]], failure: SegbatchError | None, *, as_json: bool
) -> None:
    if as_json:
        told = [{"folder": str(folder), **msgspec.to_builtins(record)} for folder, record in runs]
        answer = {"runs": told, "error": failure.as_dict() if failure is not None else None}
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
        return
    for folder, record in runs:
        _print_run(folder, record)


def _print_run(folder: Path, record: CameraRecord) -> None:
    rate = f", {1000 / record.period_ms:.1f} frames/s" if record.period_ms else ""
    click.echo(
        f"{folder}: {record.state}: {record.taken} frames taken, {record.written} written{rate}, "
        f"{record.bit_depth} bits, {record.width} x {record.height}"
    )
    if record.not_written:
        click.secho(f"not written: {record.not_written} frames", fg="red")
    if record.dropped:
        click.secho(f"dropped by the camera or the ring buffer: {record.dropped} frames", fg="red")


class _Progress:
    """A bar on a terminal; elsewhere a log line now and then."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._line_at = time.monotonic() + LINE_EVERY_S
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("acquiring"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("acquiring", total=self._frames or None, told="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def follow(self, folder: Path, counts: Counts) -> None:
        """Show where the run stands."""
        waiting = f"ring {counts.ring_used}/{counts.ring_capacity}"
        if self._bar is not None:
            told = f"{waiting}  {counts.dropped} dropped" if counts.dropped else waiting
            self._bar.update(self._task, completed=counts.written, told=told)
        elif time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + LINE_EVERY_S
            _logger.info("progress", run=str(folder), **msgspec.structs.asdict(counts))
