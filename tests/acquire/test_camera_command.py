"""``segbatch acquire`` as a real process, with Micro-Manager's real core."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segbatch.acquire.find import find_raw_files
from tests.acquire.cameras import DEVICE, SMALL, frames_in, until

CAMERA = [f"--device={DEVICE}", "--backend=python"]
CAMERA += [f"--property={name}={value}" for name, value in SMALL.items()]
ACQUIRE = [sys.executable, "-m", "segbatch", "acquire", *CAMERA]


def acquire(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run([*ACQUIRE, *options], capture_output=True, text=True, check=False)


def test_one_run_from_the_command_line(tmp_path: Path) -> None:
    """One command takes a run; its answer, its record and its files agree."""
    out = tmp_path / "run42"
    done = acquire("--frames=12", "--exposure-ms=10", "--gain-db=2", f"--out={out}", "--json")
    told = json.loads(done.stdout)
    run = told["runs"][0]
    raws = find_raw_files(out)
    kept = json.loads((out / "segbatch_camera.json").read_text())

    assert done.returncode == (1 if run["dropped"] else 0), done.stderr
    assert told["error"] is None
    assert (run["taken"], run["written"], run["state"]) == (12, 12, "complete")
    assert [raw.name for raw in raws] == [f"img_{index:09d}.tif" for index in range(12)]
    assert {frame.bit_depth for frame in frames_in(raws)} == {10}
    assert kept == {key: value for key, value in run.items() if key != "folder"}
    assert kept["schema"] == "segbatch.camera/1"

    again = acquire("--frames=1", f"--out={out}")
    assert again.returncode == 2
    assert "holds files already" in again.stderr
    assert find_raw_files(out) == raws


def test_a_named_folder_holds_the_whole_run(tmp_path: Path) -> None:
    """Where one folder is named all frames go there; else they are spread as the settings say."""
    spread = ["--frames=12", "--set=camera.frames_per_run=5", "--json"]
    one = json.loads(acquire(*spread, f"--out={tmp_path / 'one'}").stdout)["runs"]
    runs = json.loads(acquire(*spread, f"--set=camera.out={tmp_path / 'many'}").stdout)["runs"]

    assert [run["written"] for run in one] == [12]
    assert [run["written"] for run in runs] == [5, 5, 2]
    assert {Path(run["folder"]) for run in runs} == set((tmp_path / "many").iterdir())
    assert len(find_raw_files(tmp_path / "one")) == 12


def test_a_dry_run_says_what_would_be_set(tmp_path: Path) -> None:
    """A dry run compares the settings with the real camera, and makes nothing."""
    out = tmp_path / "run"
    done = acquire("--exposure-ms=7", "--roi-px=0,0,64,64", f"--out={out}", "--dry-run", "--json")
    told = json.loads(done.stdout)
    changes = {each["name"]: each for each in told["changes"]}

    assert done.returncode == 0, done.stderr
    assert told["camera"] == "DCam"
    assert (changes["Exposure"]["now"], changes["Exposure"]["wanted"]) == ("10", "7")
    assert changes["ROI"]["wanted"] == "0, 0, 64, 64"
    assert not out.exists()

    refused = acquire("--trigger-mode=Software", f"--out={out}", "--dry-run")
    assert refused.returncode == 2
    assert "no property TriggerMode (camera.trigger_mode)" in refused.stderr


def test_settings_come_from_a_file_too(tmp_path: Path) -> None:
    """The file's camera is used, its own properties too, and every run has a folder of its own."""
    config = tmp_path / "segbatch.toml"
    properties = "\n".join(f"{name} = {json.dumps(value)}" for name, value in SMALL.items())
    config.write_text(
        f'[camera]\nbackend = "python"\ndevice = "{DEVICE}"\nframes = 3\nexposure_ms = 5.0\n'
        f"out = {json.dumps(str(tmp_path / 'runs'))}\nformat = 'ndtiff'\n"
        f"[camera.properties]\n{properties}\n"
    )
    command = [sys.executable, "-m", "segbatch", "acquire", f"--config={config}"]
    for _ in range(2):
        subprocess.run([*command, "--property=Gain=4"], capture_output=True, check=False)
    runs = sorted((tmp_path / "runs").iterdir())

    assert len(runs) == 2
    for run in runs:
        frames = frames_in(find_raw_files(run))
        assert len(frames) == 3
        assert {(each.bit_depth, each.acquisition.gain_db) for each in frames} == {(10, 4.0)}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A signal ends a run without end; what was taken is on the disk and in the answer."""
    out = tmp_path / "run"
    with subprocess.Popen(
        [*ACQUIRE, "--exposure-ms=10", f"--out={out}", "--json"], stdout=subprocess.PIPE, text=True
    ) as child:
        until((out / "img_000000005.tif").exists, "frames")
        child.send_signal(number)
        answer, _ = child.communicate(timeout=60)
    run = json.loads(answer)["runs"][0]

    assert child.returncode == code
    assert run["state"] == "stopped"
    assert run["written"] == run["taken"] == len(find_raw_files(out)) > 5
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_ends_the_run_and_is_counted(tmp_path: Path) -> None:
    """On a full disk the run ends with a storage error, and says how many frames are lost."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=12M tmpfs "$1" && shift && exec "$@"'
    command = [*ACQUIRE, "--exposure-ms=2", f"--out={disk}/run", "--json"]
    command += ["--set=serve.min_free_gib=0"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(disk), *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = json.loads(done.stdout)
    run = told["runs"][0]

    assert done.returncode == 4, done.stderr
    assert told["error"]["exit_code"] == 4
    assert run["state"] == "failed"
    assert "No space left" in run["error"]
    assert run["not_written"] == run["taken"] - run["written"] > 0


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    """Without pycromanager the error names the extra to install."""
    program = (
        "import sys; sys.modules['pycromanager'] = None; from segbatch.cli import main; main()"
    )
    arguments: list[Any] = [sys.executable, "-c", program, "acquire", *CAMERA, "--out", tmp_path]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "pip install 'segbatch[camera]'" in done.stderr


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "--out FOLDER"),
        (["--out=x", "--roi-px=1,2"], "X,Y,W,H"),
        (["--out=x", "--property=Gain"], "NAME=VALUE"),
        (["--out=x", "--exposure-ms=-1"], "above 0"),
        (["--out=x", "--format=jpeg"], "ome-tiff or ndtiff"),
    ],
)
def test_wrong_use_is_said(options: list[str], word: str) -> None:
    """What cannot be used is refused with what can."""
    done = acquire(*options)

    assert done.returncode == 2
    assert word in done.stderr
