"""The service with a camera: Micro-Manager's simulated one, in its own core, looking at beads."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import tifffile

from segbatch.acquire.find import find_raw_files
from segbatch.settings import Settings
from tests.acquire.cameras import DEVICE, ZELUX
from tests.service.runs import hidden_files, outcomes, records
from tests.service.serving import Service, run_file

FRAMES_PER_RUN = 40
PROPERTIES = ZELUX | {"OnCameraCCDXSize": 320, "OnCameraCCDYSize": 240}


def write_settings(file: Path, watched: Path, **camera: Any) -> Path:
    """Write the settings of a service that drives the camera into the folder it watches."""
    settings = {"enabled": True, "backend": "python", "device": DEVICE, "exposure_ms": 40.0}
    settings |= {"out": str(watched), "frames_per_run": FRAMES_PER_RUN, **camera}
    lines = [f"[[watch]]\npath = {json.dumps(str(watched))}\n\n[camera]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    lines += ["\n[camera.properties]", *(f"{k} = {json.dumps(v)}" for k, v in PROPERTIES.items())]
    file.write_text("\n".join(lines) + "\n")
    return file


def camera_records(watched: Path) -> dict[Path, dict[str, Any]]:
    """Return what the camera says of each run, in the order in which they were taken."""
    files = watched.glob("*/segbatch_camera.json")
    found = {file.parent: json.loads(file.read_bytes()) for file in files}
    return dict(sorted(found.items(), key=lambda each: str(each[1]["started_at"])))


def image_numbers(folder: Path) -> list[int]:
    """Return the core's own numbers of the images in a run."""
    numbers = []
    for raw in find_raw_files(folder):
        with tifffile.TiffFile(raw) as file:
            numbers.append(int(file.pages[0].tags[51123].value["ImageNumber"]))
    return numbers


def test_frames_are_taken_judged_and_kept(tmp_path: Path) -> None:
    """Masks appear while frames come in, a reload leaves the camera alone, a stop loses nothing."""
    watched, state = tmp_path / "in", tmp_path / "state"
    watched.mkdir()
    config = write_settings(tmp_path / "segbatch.toml", watched)
    with Service([], state, config=config) as service:
        service.ready()
        service.until(lambda: list(watched.glob("*/*_mask.tif")))
        service.until(lambda: list(watched.glob("*/*_qc.json")))
        while_acquiring = service.status()["camera"]
        first = next(iter(camera_records(watched)))

        service.process.send_signal(signal.SIGHUP)
        service.until(lambda: service.said("settings read again"))
        at_reload = service.status()["camera"]["frames_written"]
        report = service.until(lambda: run_file(first))  # the camera is in the next folder by then
        service.until(lambda: service.status()["camera"]["frames_written"] > at_reload)
        after_reload = service.status()["camera"]
        assert service.end() == 143
        begun = service.said("acquisition begins")
    taken = camera_records(watched)

    assert while_acquiring["state"] == after_reload["state"] == "acquiring"
    assert report["counts"]["frames"] == FRAMES_PER_RUN
    assert report["counts"]["segmented"] > 0
    assert report["camera"]["state"] == "complete"
    assert report["camera"]["dropped"] == taken[first]["dropped"]
    assert {each["frame"]["bit_depth"] for each in records(first)} == {10}

    assert len(begun) == 1
    assert all(each["ring_overflows"] == 0 for each in taken.values())
    numbers = [number for folder in taken for number in image_numbers(folder)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

    *full, last = taken.values()
    assert {each["state"] for each in full} == {"complete"}
    assert last["state"] == ("complete" if last["taken"] == FRAMES_PER_RUN else "stopped")
    assert sum(each["written"] for each in taken.values()) == len(numbers)
    assert [each["not_written"] for each in taken.values()] == [0] * len(taken)
    assert not [name for folder in taken for name in hidden_files(folder) if "frame-part" in name]

    # What the stop left is done by the next start, without the camera.
    write_settings(config, watched, enabled=False)
    with Service([], state, config=config) as service:
        for folder, told in taken.items():
            report = service.until(lambda folder=folder: run_file(folder))
            assert report["counts"]["frames"] == told["written"]
            assert report["camera"]["state"] == told["state"]
    assert {folder: len(outcomes(folder)) for folder in taken} == {
        folder: told["written"] for folder, told in taken.items()
    }


def test_other_camera_settings_begin_a_new_run(tmp_path: Path) -> None:
    """A reload with another exposure ends the run, whole, and begins one with the new exposure."""
    watched, config = tmp_path / "in", tmp_path / "segbatch.toml"
    watched.mkdir()
    write_settings(config, watched, frames_per_run=0)
    with Service([], tmp_path / "state", config=config) as service:
        service.until(lambda: list(watched.glob("*/*_qc.json")))
        write_settings(config, watched, frames_per_run=0, exposure_ms=25.0)
        service.process.send_signal(signal.SIGHUP)
        service.until(lambda: len(list(watched.glob("*/img_000000003.tif"))) == 2)
        assert service.end() == 143
    taken = list(camera_records(watched).values())

    assert [each["exposure_ms"] for each in taken] == [40.0, 25.0]
    assert [each["state"] for each in taken] == ["stopped", "stopped"]
    assert [each["not_written"] for each in taken] == [0, 0]


def test_the_default_keeps_runs_bounded() -> None:
    """A camera that runs for weeks does not fill one folder, unless it is told to."""
    assert 0 < Settings().camera.frames_per_run <= 100_000
