"""What a run owes its user when things go wrong around it, and not in it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.service import runs

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals, pipes and devices")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a small run without broken files."""
    folder = runs.make_run(tmp_path / "run", frames=6, stack_frames=3)
    (folder / "broken.tif").unlink()
    return folder


def files(folder: Path) -> set[str]:
    """Name everything in a folder, hidden files too."""
    return {path.name for path in folder.iterdir()}


def open_writer(pipe: Path, process: subprocess.Popen[str]) -> int:
    """Open ``pipe`` for writing as soon as the process has opened it to read."""
    opened: list[int] = []

    def is_read() -> bool:
        try:
            opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads it yet
                raise
        return bool(opened)

    assert runs.wait_until(is_read, process), process.communicate()
    return opened[0]


def interrupted(process: subprocess.Popen[str]) -> str:
    """Send SIGINT until the process ends; return what it said on stderr.

    A signal that comes between Python's look for signals and the call that blocks is seen after it.
    """
    for _ in range(60):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=1)[1]
    raise AssertionError("SIGINT does not end it")


@posix
def test_sigint_before_the_run_begins_ends_with_130(folder: Path, tmp_path: Path) -> None:
    """SIGINT while the settings are still being read ends with 130 and leaves nothing behind."""
    settings = tmp_path / "settings.toml"
    os.mkfifo(settings)
    before = files(folder)
    process = runs.start("process", folder, "--config", settings)
    writer = open_writer(settings, process)
    try:
        errors = interrupted(process)
    finally:
        os.close(writer)
        runs.kill(process)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert files(folder) == before


@posix
def test_sigint_at_any_early_moment_leaves_nothing_half_done(folder: Path) -> None:
    """SIGINT at whatever early moment ends the process, and the next run finishes what is left."""
    for moment_s in np.random.default_rng(11).uniform(0.0, 0.8, 8):
        process = runs.start("process", folder, "--redo")
        time.sleep(moment_s)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        # Before the first line of ours the interpreter ends by itself: with 1 while it still
        # looks for its modules.
        ours = "init_import_site" not in errors
        assert process.returncode in ({130, -signal.SIGINT, 0} if ours else {1}), errors
        assert not [name for name in runs.hidden_files(folder) if name.endswith(".tmp")]
    assert runs.segbatch("process", folder).returncode == 0
    assert len(runs.outcomes(folder)) == sum(runs.raw_frames(folder).values()) == 9
    assert runs.hidden_files(folder) == []


INTERRUPTED_IMPORT = """
import signal
from segbatch.cli import main

@main.command()
def late() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise TypeError("expected a message argument")

main(["late"])
"""


@posix
def test_sigint_that_a_compiled_module_turns_into_another_error_ends_with_130() -> None:
    """SIGINT within an import that makes a TypeError of it ends with 130 and no traceback."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "")


def segbatch_with(streams: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command with its standard streams changed as a shell would."""
    shell = ["/bin/sh", "-c", f'exec "$@" {streams}', "sh"]
    return subprocess.run(
        [*shell, *runs.COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_the_log_does_not_cost_the_run(folder: Path) -> None:
    """Where no line of the log can be written, every frame still gets its outcome."""
    done = segbatch_with("2>/dev/full", "--verbose", "process", folder, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["error"] is None
    assert len(runs.outcomes(folder)) == 9


@posix
@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_cost_the_run(folder: Path, closed: str) -> None:
    """Where standard streams are closed, every frame gets its outcome and its own mask."""
    raws = {path: path.read_bytes() for path in folder.glob("*.tif")}
    done = segbatch_with(closed, "--verbose", "process", folder)
    found = runs.outcomes(folder)
    assert done.returncode == 0
    assert len(found) == 9
    assert {path: path.read_bytes() for path in raws} == raws
    assert runs.hidden_files(folder) == []
    runs.clear(folder)
    assert runs.segbatch("process", folder).returncode == 0
    assert runs.outcomes(folder) == found


@posix
@pytest.mark.parametrize("stderr", ["", "2>/dev/full", "2>&-"])
def test_an_early_error_is_one_json_document(tmp_path: Path, stderr: str) -> None:
    """With --json a folder that is not there is one document on stdout, and exit code 2."""
    if stderr.endswith("full") and not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    done = segbatch_with(stderr, "process", tmp_path / "none", "--json")
    assert done.returncode == 2
    answer = json.loads(done.stdout)  # fails on anything beside the one document
    assert answer["error"]["exit_code"] == 2
    assert "none: no such file or folder" in answer["error"]["got"]
    assert ("no such file or folder" in done.stderr) == (not stderr)
