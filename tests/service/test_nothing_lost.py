"""Frames are conserved: real processes, killed, stopped, starved and contradicted."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tifffile

from tests.service import runs

KILLS = 50


@pytest.fixture(scope="module")
def run_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one run that every test copies."""
    return runs.make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def undisturbed(run_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run processed in one go."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(run_made, folder)
    done = runs.segbatch("process", folder)
    assert done.returncode == 1, done.stderr  # the broken file
    return folder


@pytest.fixture
def run(run_made: Path, tmp_path: Path) -> Path:
    """Copy the run."""
    shutil.copytree(run_made, tmp_path / "run")
    return tmp_path / "run"


def assert_conserved(folder: Path, undisturbed: Path) -> None:
    """Every frame has exactly one outcome, that of an undisturbed run, and nothing else is left."""
    found = runs.outcomes(folder)
    expected = {
        (name, page) for name, count in runs.raw_frames(folder).items() for page in range(count)
    }
    assert set(found) == expected
    assert found == runs.outcomes(undisturbed)
    assert runs.hidden_files(folder) == []


def test_every_frame_has_one_outcome(undisturbed: Path) -> None:
    """Segmented, rejected and failed add up to the frames that went in."""
    assert_conserved(undisturbed, undisturbed)
    found = runs.outcomes(undisturbed).values()
    assert {outcome.outcome for outcome in found} == {"segmented", "rejected", "failed"}
    assert all((o.mask_hash is not None) == (o.outcome == "segmented") for o in found)


def test_running_again_redoes_nothing(undisturbed: Path) -> None:
    """A second run leaves every mask and QC log as it is, down to the inode."""
    results = [p for p in undisturbed.iterdir() if "_mask" in p.name or "_qc" in p.name]
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in results}
    done = runs.segbatch("process", undisturbed)

    assert done.returncode == 1
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in results} == before


def frames_recorded(folder: Path) -> int:
    """Count the frames that reached the disk, those of a half-done stack too."""
    logs = [*folder.glob("*_qc.jsonl"), *folder.glob(".*_qc.jsonl.segbatch-journal")]
    lines = 0
    for log in logs:
        with contextlib.suppress(FileNotFoundError):  # published since it was listed
            lines += log.read_bytes().count(b"\n")
    return lines + sum(1 for _ in folder.glob("*_qc.json"))


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_kill_at_fifty_random_moments_loses_nothing(run: Path, undisturbed: Path) -> None:
    """Killed fifty times and run again until done, a run ends as if nobody had disturbed it."""
    chance = random.Random(20)  # noqa: S311 - repeatable moments, no secrets
    frames = sum(runs.raw_frames(run).values())
    expected = runs.outcomes(undisturbed)
    kills = midway = finished = 0
    while kills < KILLS or finished == 0:
        segmented = {
            mask: mask.stat().st_ino
            for mask in run.glob("img_*_mask.tif")
            if (run / mask.name.replace("_mask.tif", "_qc.json")).exists()
        }
        target = frames_recorded(run) + chance.randrange(7) if kills < KILLS else frames + 1
        process = runs.start("process", run)
        reached = runs.wait_until(
            lambda enough=target: (
                (run / ".segbatch.lock").exists() and frames_recorded(run) >= enough
            ),
            process,
        )
        if reached and process.poll() is None:
            time.sleep(chance.uniform(0, 0.02))
        runs.kill(process)
        for mask, inode in segmented.items():
            if expected[mask.name.replace("_mask", ""), 0].outcome == "segmented":
                assert mask.stat().st_ino == inode, f"{mask.name} was segmented twice"
        if process.returncode == 1:  # through, but for the broken file
            assert_conserved(run, undisturbed)
            finished += 1
            runs.clear(run)
            continue
        assert process.returncode == -signal.SIGKILL
        kills += 1
        midway += 0 < frames_recorded(run) < frames

    assert finished >= 1
    assert midway >= KILLS // 3


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drains_and_the_next_run_finishes(
    run: Path, undisturbed: Path, number: signal.Signals, code: int
) -> None:
    """The first signal ends the run cleanly with 128 plus its number; the next run goes on."""
    process = runs.start("process", run)
    assert runs.wait_until(lambda: any(run.glob("*_qc.json")), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == code, errors
    assert not [name for name in runs.hidden_files(run) if "part" in name or "lock" in name]
    assert runs.segbatch("process", run).returncode == 1
    assert_conserved(run, undisturbed)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_second_signal_stops_at_once(run: Path, undisturbed: Path) -> None:
    """Two signals end the process without draining, and still leave no partial file."""
    process = runs.start("process", run)
    assert runs.wait_until(lambda: any(run.glob("*_qc.json")), process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)

    assert process.returncode == 143
    assert not [name for name in runs.hidden_files(run) if "part" in name]
    assert runs.segbatch("process", run).returncode == 1
    assert_conserved(run, undisturbed)


def test_a_second_run_on_the_folder_is_refused_and_names_the_first(run: Path) -> None:
    """While one process has a folder, another is refused with exit 4 and the first's number."""
    first = runs.start("process", run)
    lock = run / ".segbatch.lock"
    assert runs.wait_until(lambda: lock.exists() and b"}" in lock.read_bytes(), first)
    first.send_signal(signal.SIGSTOP)
    try:
        for path in (run, run.parent):
            second = runs.segbatch("process", path)
            assert second.returncode == 4
            assert f"process {first.pid}" in second.stderr
    finally:
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=60)
    assert first.returncode == 1


def test_a_stale_lock_is_taken_over(run: Path) -> None:
    """A lock whose process was killed stops nobody, and the log names who left it."""
    first = runs.start("process", run)
    assert runs.wait_until((run / ".segbatch.lock").exists, first)
    time.sleep(0.05)
    runs.kill(first)
    assert (run / ".segbatch.lock").exists()
    second = runs.segbatch("process", run)

    assert second.returncode == 1
    assert "stale lock" in second.stderr
    assert str(first.pid) in second.stderr


def can_mount() -> bool:
    """Tell whether this user may mount a file system of its own."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--mount", "--map-root-user", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="no private mounts here")


def in_mount(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a shell script where it may mount file systems that nobody else sees."""
    shell = ["sh", "-euc", script, "sh", *map(str, arguments)]
    return subprocess.run(
        ["unshare", "--mount", "--map-root-user", *shell],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@needs_mount
def test_a_full_disk_stops_with_4_and_the_run_continues_when_there_is_room(
    run: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """On a full disk the run ends with exit 4, and after room was made it ends as undisturbed."""
    disk, back = tmp_path / "disk", tmp_path / "back"
    disk.mkdir()
    script = f"""
        mount -t tmpfs -o size=48M tmpfs "$2"
        cp -r "$1" "$2/run"
        free=$(df --output=avail -k "$2" | tail -1)
        head -c $((free - 40))K /dev/zero > "$2/filler"
        set +e
        {sys.executable} -m segbatch process "$2/run"; echo "first=$?"
        ls -A "$2/run" | grep -c segbatch-part; echo "qc=$(ls "$2/run" | grep -c _qc)"
        rm "$2/filler"
        {sys.executable} -m segbatch process "$2/run"; echo "second=$?"
        cp -r "$2/run" "$3"
    """
    done = in_mount(script, run, disk, back)

    assert "first=4" in done.stdout, done.stdout + done.stderr
    assert "No space left" in done.stderr
    assert "second=1" in done.stdout, done.stdout + done.stderr
    assert_conserved(back, undisturbed)


@needs_mount
def test_a_read_only_folder_is_refused_with_the_way_out(run: Path, tmp_path: Path) -> None:
    """A folder that cannot be written ends with exit 4 and names --out, which then works."""
    script = f"""
        mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"
        set +e
        {sys.executable} -m segbatch process "$1"; echo "plain=$?"
        {sys.executable} -m segbatch process "$1" --out "$2"; echo "out=$?"
    """
    done = in_mount(script, run, tmp_path / "results")

    assert "plain=4" in done.stdout, done.stderr
    assert "--out" in done.stderr
    assert "out=1" in done.stdout, done.stderr
    assert len(runs.records(tmp_path / "results")) == sum(runs.raw_frames(run).values())
    assert not list(run.glob("*_qc*"))


def test_a_vanished_folder_stops_with_4(run: Path) -> None:
    """A folder that goes away during the run ends it with exit 4, not with a traceback."""
    process = runs.start("process", run)
    assert runs.wait_until(lambda: any(run.glob("*_qc.json")), process)
    process.send_signal(signal.SIGSTOP)
    run.rename(run.with_name("elsewhere"))
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 4, errors
    assert "Traceback" not in errors


def test_a_raw_file_replaced_after_its_outcome_is_done_again(run: Path) -> None:
    """A QC log that answers for other pixels is stale: that frame is done again, no other."""
    assert runs.segbatch("process", run).returncode == 1
    before = runs.outcomes(run)
    good = [key for key, outcome in before.items() if outcome.outcome == "segmented"]
    first, second = [name for name, _ in good if name.startswith("img")][:2]
    shifted = tifffile.imread(run / second)[::-1]
    tifffile.imwrite(run / first, shifted)
    done = runs.segbatch("process", run)
    after = runs.outcomes(run)

    assert "raw file changed" in done.stderr
    assert after[first, 0].pixel_hash != before[first, 0].pixel_hash
    assert {k: v for k, v in after.items() if k[0] != first} == {
        k: v for k, v in before.items() if k[0] != first
    }


def test_a_touched_raw_file_is_not_done_again(run: Path) -> None:
    """A new time stamp on the same pixels makes nothing stale."""
    assert runs.segbatch("process", run).returncode == 1
    for raw in run.glob("img_????.tif"):
        os.utime(raw)
    before = {path: path.stat().st_ino for path in run.glob("*_mask.tif")}
    runs.segbatch("process", run)

    assert {path: path.stat().st_ino for path in run.glob("*_mask.tif")} == before


def test_other_settings_make_results_stale(run: Path) -> None:
    """A threshold changed in the settings redoes the run and says why."""
    assert runs.segbatch("process", run).returncode == 1
    done = runs.segbatch("process", run, "--set", "threshold=0.9")

    assert "other settings" in done.stderr
    assert {record["settings_sha256"] for record in runs.records(run)} != {""}
    assert len({record["settings_sha256"] for record in runs.records(run)}) == 1


def as_mere_user() -> list[str] | None:
    """Return a prefix that takes root's power over permissions away; None where that cannot be."""
    if os.name == "nt":
        return None
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None:
        return None
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else None


@pytest.mark.skipif(as_mere_user() is None, reason="permissions cannot be made to bind here")
def test_an_unreadable_file_fails_alone_and_is_tried_again(run: Path) -> None:
    """A file without read permission fails by name; with permission the next run does it."""
    victim = sorted(run.glob("img_????.tif"))[0]
    victim.chmod(0)
    prefix = as_mere_user() or []
    done = subprocess.run(
        [*prefix, *runs.COMMAND, "process", str(run)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{victim.name} frame 0" in done.stdout
    assert "Permission denied" in done.stdout
    victim.chmod(0o644)
    runs.segbatch("process", run)

    assert runs.outcomes(run)[victim.name, 0].outcome != "failed"
