"""The DemoCamera at the Zelux's full rate: frames taken, written, judged, segmented, dropped.

    python bench/camera.py [--minutes 10] [--without-serve | --segment-all] [--folder FOLDER]

Micro-Manager's simulated camera gives 1440 x 1080 px, 10 bits, 34.8 frames/s, beads. With
``segbatch serve`` as a child process that drives it and watches the folder it writes to, or,
``--without-serve``, with ``segbatch acquire`` alone. Ten minutes take 65 GB. Exit code 1 where a
run failed or was tried again, or a frame was lost or dropped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import psutil
from witness import Witness

RATE_PER_S = 34.8  # vendor's guide of the CS165MU, full frame
FRAME_BYTES = 1440 * 1080 * 2
COMMAND = [sys.executable, "-m", "segbatch"]
LISTEN = "127.0.0.1:9471"
DEVICE = "DemoCamera/DCam"
PROPERTIES = {
    "OnCameraCCDXSize": "1440",
    "OnCameraCCDYSize": "1080",
    "PixelType": "16bit",
    "BitDepth": "10",
    "Mode": "Fluorescent Beads",
}
CHILD = "segbatch.acquire.camera.child"
ENDING_S = 5.0  # in which the core is unloaded
SAMPLE_S = 1.0
ATTEMPT_FAILED = ("camera failed", "camera waiting", "the camera's process is gone")
MARGIN_MS = 0.5  # its period grows a little on a busy machine
SETTLED_S = 15.0  # until which memory is still being filled: ring buffer, engine, caches


Memory = dict[str, list[tuple[float, float]]]  # of each process: s since it began, resident MiB


def camera_options(exposure_ms: float, frames: int, kind: str) -> list[str]:
    """Return what `segbatch acquire` is told."""
    options = [f"--property={name}={value}" for name, value in PROPERTIES.items()]
    options += [f"--device={DEVICE}", "--backend=python", f"--format={kind}"]
    return [*options, f"--exposure-ms={exposure_ms:.3f}", f"--frames={frames}"]


def calibrate(folder: Path, kind: str) -> float:
    """Return the exposure, ms, at which the simulated camera is no slower than the Zelux."""
    exposure_ms = 1000 / RATE_PER_S - 1
    for trial in range(3):
        record = acquire(folder / f"trial_{trial}", exposure_ms, 120, kind, {})
        if not record["period_ms"]:
            raise SystemExit(f"no calibration: {record['error']}")
        exposure_ms += 1000 / RATE_PER_S - record["period_ms"]
    return exposure_ms - MARGIN_MS


def acquire(
    out: Path, exposure_ms: float, frames: int, kind: str, memory: Memory
) -> dict[str, Any]:
    """Run `segbatch acquire` and return its record; fill in its resident memory over time."""
    command = [*COMMAND, "acquire", *camera_options(exposure_ms, frames, kind), f"--out={out}"]
    with subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        watch(child, memory)
        answer, told = child.communicate()
    if not answer:
        raise SystemExit(told)
    runs = json.loads(answer)["runs"]
    return dict(runs[0]) if runs else failed(told)


def failed(why: str) -> dict[str, Any]:
    """End the program where there is nothing to measure."""
    raise SystemExit(why[-4000:])


def watch(child: subprocess.Popen[str], memory: Memory) -> None:
    """Note the child's resident memory until it ends."""
    begun = time.monotonic()
    process = psutil.Process(child.pid)
    while child.poll() is None:
        note(memory, "acquire", process, begun)
        time.sleep(SAMPLE_S)


def note(memory: Memory, name: str, process: psutil.Process, begun: float) -> None:
    """Note the resident memory of one process."""
    with contextlib.suppress(psutil.Error):
        size = process.memory_info().rss / 2**20
        memory.setdefault(name, []).append((time.monotonic() - begun, size))


def note_all(memory: Memory, service: psutil.Process, begun: float) -> None:
    """Note the resident memory of a service and of the process that drives its camera."""
    note(memory, "service", service, begun)
    with contextlib.suppress(psutil.Error):
        for child in service.children():
            if CHILD in child.cmdline():
                note(memory, "camera", child, begun)


def write_settings(
    file: Path, watched: Path, exposure_ms: float, frames: int, kind: str, *, judge: bool
) -> None:
    """Write the settings of a service that drives the camera and watches its folder."""
    properties = "\n".join(f'{name} = "{value}"' for name, value in PROPERTIES.items())
    text = (
        f"[[watch]]\npath = {json.dumps(str(watched))}\n\n"
        f'[serve]\nlisten = "{LISTEN}"\nrun_quiet_s = 20.0\n\n'
        f'[camera]\nenabled = true\nbackend = "python"\ndevice = "{DEVICE}"\n'
        f'format = "{kind}"\nexposure_ms = {exposure_ms:.3f}\nframes = {frames}\n'
        f"out = {json.dumps(str(watched))}\n\n[camera.properties]\n{properties}\n\n"
        f"[quality]\nenabled = {json.dumps(judge)}\n"
    )
    tomllib.loads(text)
    file.write_text(text, encoding="utf-8")


def statuses(child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Give the service's status, once a second, for as long as it lives."""
    while child.poll() is None:
        with (
            contextlib.suppress(OSError, ValueError),
            urllib.request.urlopen(f"http://{LISTEN}/status", timeout=5) as answer,
        ):
            yield json.load(answer)
        time.sleep(SAMPLE_S)


def serve(
    folder: Path, exposure_ms: float, frames: int, kind: str, patience_s: float, *, judge: bool
) -> tuple[list[dict[str, Any]], list[str], dict[str, Any], Memory]:
    """Run `segbatch serve` until it has worked off what the camera took.

    Returns the camera's records, what its log says of attempts that failed, the service's last
    status, and its memory over time.
    """
    watched = folder / "watched"
    watched.mkdir()
    settings = folder / "segbatch.toml"
    write_settings(settings, watched, exposure_ms, frames, kind, judge=judge)
    memory: Memory = {}
    last: dict[str, Any] = {}
    with (folder / "serve.log").open("wb") as log_file:
        child = subprocess.Popen([*COMMAND, "serve", "--config", str(settings)], stderr=log_file)
        try:
            process = psutil.Process(child.pid)
            begun = time.monotonic()
            until = begun + frames / RATE_PER_S + patience_s
            for status in statuses(child):
                last = status
                note_all(memory, process, begun)
                camera = status.get("camera") or {}
                done = sum(status["frames"].values())
                if camera.get("frames_taken", 0) >= frames and done >= camera["frames_written"]:
                    break
                if time.monotonic() > until:
                    print("not finished in time: what follows is how far it came")
                    break
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(120)
    told = (folder / "serve.log").read_text(encoding="utf-8")
    files = watched.glob("*/segbatch_camera.json")
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not records:
        failed(told)
    records.sort(key=lambda record: record["started_at"])
    return records, attempts_that_failed(told), last, memory


def attempts_that_failed(log: str) -> list[str]:
    """Return why the camera's session had to try again; a run without a frame leaves no folder."""
    whys = []
    for line in log.splitlines():
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if said.get("event") in ATTEMPT_FAILED:
                whys.append(f"{said['event']}: {said.get('error')}")
    return whys


def show(
    records: list[dict[str, Any]],
    status: dict[str, Any] | None,
    memory: Memory,
    witness: Witness,
) -> None:
    """Print the table."""
    periods = [record["period_ms"] for record in records if record["period_ms"]]
    totals = {
        name: sum(record[name] for record in records)
        for name in ("taken", "written", "not_written", "dropped", "unsynced")
    }
    most = max(record["ring_most_used"] for record in records)
    rows: dict[str, object] = {
        "frames/s": f"{1000 / periods[-1]:.2f}" if periods else "unknown",
        "folders": ", ".join(f"{record['taken']} {record['state']}" for record in records),
        "taken": totals["taken"],
        "written": totals["written"],
        "not written": totals["not_written"],
        "dropped": totals["dropped"],
        "written without waiting for the disk": totals["unsynced"],
        "ring buffer, most used": f"{most} of {records[-1]['ring_capacity']}",
        "late by itself was the machine": witness.summary(),
    }
    if status is not None:
        frames = status["frames"]
        rows["judged"] = sum(frames.values())
        rows |= {name: frames.get(name, 0) for name in ("segmented", "rejected", "failed")}
        rows["backlog at the end"] = status["backlog"]
    for name, sizes in memory.items():
        last_s = sizes[-1][0] - ENDING_S
        settled = [size for at, size in sizes if SETTLED_S < at < last_s] or [sizes[-1][1]]
        tenth = max(len(settled) // 10, 1)
        begin, end = sum(settled[:tenth]) / tenth, sum(settled[-tenth:]) / tenth
        peak = max(size for _, size in sizes)
        row = f"resident memory, MiB: {name}, begin, end, most"
        rows[row] = f"{begin:.0f}, {end:.0f}, {peak:.0f}"
    print("\n| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    for record in records:
        for gap in record["gaps"]:
            print(f"gap: {json.dumps(gap)}: {witness.says_of(record, gap)}")


def faults(
    records: list[dict[str, Any]], attempts: list[str], frames: int, status: dict[str, Any] | None
) -> list[str]:
    """Return what keeps the measurement from being a good one."""
    found = attempts + [
        f"run of {record['taken']} frames {record['state']}: {record['error']}"
        for record in records
        if record["state"] != "complete"
    ]
    taken, written = (sum(record[name] for record in records) for name in ("taken", "written"))
    if taken != frames or written != taken:
        found.append(f"{frames} frames wanted, {taken} taken, {written} written")
    if dropped := sum(record["dropped"] for record in records):
        found.append(f"{dropped} frames dropped")
    if status is not None and sum(status["frames"].values()) != written:
        found.append(f"{sum(status['frames'].values())} of {written} frames judged")
    return found


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--without-serve", action="store_true", help="only take and write")
    parser.add_argument(
        "--segment-all",
        action="store_true",
        help="do not judge: the simulated camera repeats one image, which is rejected as duplicate",
    )
    parser.add_argument("--format", choices=("ome-tiff", "ndtiff"), default="ome-tiff")
    parser.add_argument("--folder", type=Path, help="where the frames go, and are removed from")
    parser.add_argument(
        "--patience-minutes", type=float, default=60.0, help="for serve to work off its backlog"
    )
    given = parser.parse_args()
    frames = round(60 * given.minutes * RATE_PER_S)
    for line in machine.describe():
        print(line, flush=True)
    with tempfile.TemporaryDirectory(prefix="segbatch-camera-", dir=given.folder) as name:
        folder = Path(name)
        needed, free = 1.02 * frames * FRAME_BYTES, shutil.disk_usage(folder).free
        if free < needed:
            raise SystemExit(f"{folder}: {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB needed")
        exposure_ms = calibrate(folder, given.format)
        print(f"exposure for {RATE_PER_S} frames/s: {exposure_ms:.3f} ms", flush=True)
        memory: Memory = {}
        status, attempts = None, list[str]()
        patience_s, judge = 60 * given.patience_minutes, not given.segment_all
        with Witness() as witness:
            if given.without_serve:
                records = [acquire(folder / "run", exposure_ms, frames, given.format, memory)]
            else:
                records, attempts, status, memory = serve(
                    folder, exposure_ms, frames, given.format, patience_s, judge=judge
                )
        show(records, status, memory, witness)
    if found := faults(records, attempts, frames, status):
        raise SystemExit("\n".join(["", "failed:", *found]))


if __name__ == "__main__":
    main()
