"""What an export leaves in a folder, however it ends: all of it, or nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from segbatch.cli import main
from segbatch.errors import StorageError
from segbatch.infer.engine.network.models import open_model
from segbatch.learn.export.command import Wish, export_engine_command
from segbatch.learn.export.workplace import put_in_place, workplace
from tests.infer.conftest import MakeModel
from tests.service.test_nothing_lost import as_mere_user, in_mount, needs_mount

SHAPE = ("--frame-shape", "96x128")
LARGE = ("--frame-shape", "540x720")  # which takes a while
INT8 = ("--engine", "openvino", "--precision", "int8", "--force")
COMMAND = (sys.executable, "-m", "segbatch", "export-engine")
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def names(folder: Path) -> set[str]:
    """Return what lies in a folder, hidden or not."""
    return {file.name for file in folder.iterdir()} if folder.exists() else set()


def hidden(folder: Path) -> list[Path]:
    """Return the hidden things in a folder."""
    return sorted(folder.glob(".*")) if folder.exists() else []


def until_it_works(out: Path, moment: str) -> subprocess.Popen[str]:
    """Start an export into ``out``; return it when it has its hidden folder or said ``moment``."""
    process = subprocess.Popen(
        [*COMMAND, *LARGE, "--precision", "fp32", "--force", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background SIGINT is ignored, and so it would be here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    assert process.stderr is not None
    if moment:
        assert any(moment in line for line in process.stderr)
    while not moment and not list(out.glob(".export-*/.lock")):
        assert process.poll() is None
        time.sleep(0.005)
    return process


@posix
@pytest.mark.parametrize("moment", ["preparing frames", "", "tried"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_export_that_is_stopped_leaves_nothing(
    number: signal.Signals, moment: str, tmp_path: Path
) -> None:
    """Stopped by SIGTERM or SIGINT it ends with 143 or 130, and the folder is empty."""
    out = tmp_path / "out"
    process = until_it_works(out, moment)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]

    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert "stopped: an engine is written whole or not at all" in said
    assert names(out) == set()


@posix
def test_what_a_killed_export_left_goes_with_the_next(tmp_path: Path) -> None:
    """Killed it leaves its hidden folder, which the next export into the folder removes."""
    out = tmp_path / "out"
    process = until_it_works(out, "")
    process.kill()
    process.communicate()
    left = hidden(out)
    with workplace(out) as mine:
        beside = hidden(out)

    assert len(left) == 1
    assert beside == [mine]
    assert names(out) == set()


def test_the_folder_of_a_running_export_stays(tmp_path: Path) -> None:
    """What another export holds, and what nobody here made, is not removed."""
    theirs = tmp_path / ".export-of-mine"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("mine")
    with workplace(tmp_path) as one:
        (one / "made").write_bytes(b"1")
        with workplace(tmp_path) as two:
            assert set(hidden(tmp_path)) == {one, two, theirs}
        assert (one / "made").read_bytes() == b"1"

    assert hidden(tmp_path) == [theirs]
    assert names(theirs) == {"notes.txt"}


def test_what_ended_before_it_held_its_folder_is_removed(tmp_path: Path) -> None:
    """A hidden folder without anything in it is nobody's."""
    (tmp_path / ".export-abcdefgh").mkdir()
    with workplace(tmp_path) as mine:
        assert hidden(tmp_path) == [mine]


def test_where_one_file_cannot_be_moved_all_is_as_it_was(tmp_path: Path) -> None:
    """A move that fails takes those before it back."""
    spare, place = tmp_path / "spare", tmp_path / "place"
    for folder in (spare, place, place / "c"):
        folder.mkdir()
    (place / "c" / "full").touch()
    (place / "a").write_text("old")
    for name in "abc":
        (spare / name).write_text("new")
    moves = [(place / "a", spare / "a.old"), *((spare / name, place / name) for name in "abc")]
    with pytest.raises(OSError, match="c"):
        put_in_place(moves)

    assert (place / "a").read_text() == "old"
    assert names(place) == {"a", "c"}
    assert names(spare) == {"a", "b", "c"}


@needs_mount
def test_a_full_disk_leaves_all_or_nothing(tmp_path: Path) -> None:
    """Wherever the room ends, exit code 4 names the remedy and nothing is left; else all is."""
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = " ".join([*SHAPE, *INT8])
    script = f"""
        export="{sys.executable} -m segbatch export-engine {arguments}"
        for size in 100 400 750 4000; do
            mount -t tmpfs -o size=${{size}}k tmpfs "$1"
            set +e
            $export --out "$1" --json >"$2" 2>/dev/null
            echo "size=$size code=$? left=$(ls -A "$1" | wc -l)"
            grep remedy "$2"
            set -e
            umount "$1"
        done
    """
    done = in_mount(script, disk, tmp_path / "said")
    lines = [line.strip() for line in done.stdout.splitlines()]

    assert [line for line in lines if line.startswith("size")] == [
        "size=100 code=4 left=0",
        "size=400 code=4 left=0",
        "size=750 code=4 left=0",
        "size=4000 code=0 left=4",
    ], done.stdout + done.stderr
    remedies = [line for line in lines if line.startswith('"remedy"')]
    assert len(remedies) == 3
    assert all("free some room" in each and "--out DIR" in each for each in remedies)


@pytest.mark.skipif(as_mere_user() is None, reason="permissions cannot be made to bind here")
@pytest.mark.parametrize("out", ["", "locked/made", "locked"])
def test_a_folder_that_is_not_ours_is_found_before_the_work(out: str, tmp_path: Path) -> None:
    """Where the folder, or the cache folder, cannot be written, no frame is prepared."""
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    arguments = ["--out", str(tmp_path / out)] if out else []
    done = subprocess.run(
        [*(as_mere_user() or []), *COMMAND, *SHAPE, *INT8, *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(locked)},
    )
    error = json.loads(done.stdout)["error"]

    assert done.returncode == error["exit_code"] == 4
    assert str(tmp_path / out if out else locked) in error["got"]
    assert "--out DIR" in error["remedy"]
    assert "preparing frames" not in done.stderr
    assert names(locked) == set()


def test_a_folder_that_cannot_be_written_is_no_dead_end_for_rebuild(tmp_path: Path) -> None:
    """Where an engine cannot be made again in its place, the command for another one is told."""
    (tmp_path / "file").touch()
    manifest_file = str(tmp_path / "file" / "net.openvino-fp32.engine.json")
    out = str(tmp_path / "file" / "made")
    wish = Wish(model="net.json", precision="fp32", out=out, force=True, rebuild=manifest_file)
    with pytest.raises(StorageError) as caught:
        export_engine_command(wish, dry_run=False, as_json=False)

    assert "segbatch export-engine net.json --precision fp32 --out DIR" in caught.value.remedy


def test_the_folder_is_looked_at_before_the_model_is_taken_in(tmp_path: Path) -> None:
    """An --out that cannot be made is told before a model is, which may take minutes to read."""
    (tmp_path / "file").touch()
    asked = ["export-engine", str(tmp_path / "none.pt"), "--out", str(tmp_path / "file" / "made")]
    done = CliRunner().invoke(main, asked)

    assert done.exit_code == 4
    assert "none.pt" not in done.output


def test_a_manifest_of_a_network_that_is_there_is_put_beside_it(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """A folder that holds the network without its manifest gets what is missing."""
    model = open_model(make_model().file)
    out = tmp_path / "made"
    out.mkdir()
    (out / "net.onnx").write_bytes(model.file.read_bytes())
    asked = ["export-engine", str(model.file), *SHAPE, "--precision", "fp32", "--force"]
    done = CliRunner().invoke(main, [*asked, "--out", str(out)])

    assert done.exit_code == 0, done.output
    assert names(out) == {"net.onnx", "net.json", "net.openvino-fp32.engine.json"}
    assert msgspec.json.decode((out / "net.json").read_bytes())["file"] == "net.onnx"
