"""Files that appear whole or not at all, as those that engines leave do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segbatch.wholefile import sync_folder, whole_file, write_whole

# What a process does to the disk, in order: it really does it.
SHOW = """
import os, sys
from pathlib import Path
from segbatch.infer.engine.made.artifact import EngineManifest, write_artifact

really = os.fsync
def fsync(descriptor):
    really(descriptor)
    print("synced", os.fstat(descriptor).st_size)
os.fsync = fsync
sys.addaudithook(lambda event, _: print("renamed") if event == "os.rename" else None)
write_artifact(
    EngineManifest(model="", file="", sha256="", source_sha256="", engine="openvino", version="",
                   precision="fp32"),
    Path(sys.argv[1]),
)
"""


def test_bytes_are_on_the_disk_before_they_have_the_name(tmp_path: Path) -> None:
    """An engine's manifest is flushed before the rename, so that no power cut empties it."""
    file = tmp_path / "net.openvino-fp32.engine.json"
    done = subprocess.run(
        [sys.executable, "-c", SHOW, str(file)], capture_output=True, text=True, check=True
    )

    assert done.stdout.split("\n")[:-1] == [f"synced {file.stat().st_size}", "renamed"]


def test_what_cannot_take_its_name_leaves_nothing(tmp_path: Path) -> None:
    """Where the rename fails, what is there stays and the temporary file goes."""
    (tmp_path / "full" / "of").mkdir(parents=True)
    with pytest.raises(OSError, match="full"):
        write_whole(tmp_path / "full", b"1")

    assert [each.name for each in tmp_path.iterdir()] == ["full"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """An error before the end of the content changes nothing."""
    (tmp_path / "a").write_bytes(b"old")
    parts = (bytes(10 // each) for each in (5, 0))
    with (
        pytest.raises(ZeroDivisionError),
        whole_file(tmp_path / ".a", tmp_path / "a") as handle,
    ):
        handle.writelines(parts)

    assert (tmp_path / "a").read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_a_file_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    """Written for everybody to read, or for its owner alone."""
    write_whole(tmp_path / "shared", b"")
    write_whole(tmp_path / "own", b"", mode=0o600)

    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_gone_cannot_be_flushed(tmp_path: Path) -> None:
    """A folder that is there is flushed to the disk; one that is not is an error."""
    sync_folder(tmp_path)
    if sys.platform != "win32":
        with pytest.raises(FileNotFoundError):
            sync_folder(tmp_path / "none")
