"""Models that were taken in: never half a one, never one too few, and not all for ever."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs
from torch import nn

from segbatch.infer.engine import cache
from segbatch.infer.engine.manifest import load_model
from segbatch.infer.engine.network import adopted
from segbatch.infer.engine.network.models import open_model
from tests.infer.networks import draw_unet
from tests.service.test_nothing_lost import in_mount, needs_mount

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.learn, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

OPEN = (
    "import sys; from segbatch.infer.engine.network.models import open_model; "
    "open_model(sys.argv[1])"
)
OLD_S = adopted.UNUSED_S + 60


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep models in a folder of each test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def models() -> Path:
    """Return the folder of all models that were taken in."""
    return cache.cache_folder() / "models"


def elsewhere(source: Path) -> Path:
    """Take a network in, in a process that is over now; return the folder it is kept in."""
    before = set(models().glob("*/*"))
    subprocess.run([sys.executable, "-c", OPEN, str(source)], check=True, capture_output=True)
    (made,) = set(models().glob("*/*")) - before
    return made


def aged(folder: Path, seconds: float = OLD_S) -> None:
    """Let a folder have been used last some time ago."""
    then = time.time() - seconds
    os.utime(folder, (then, then))


def drawn(folder: Path, name: str, seed: int = 0, base: int = 4) -> Path:
    """Write a small network."""
    draw_unet(folder / f"{name}.onnx", depth=1, seed=seed, base=base)
    return folder / f"{name}.onnx"


def test_a_killed_intake_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    """Killed at random moments, with or without its child, intake leaves whole models only."""
    source = drawn(tmp_path, "net")
    rng = random.Random(6)  # noqa: S311 - moments, no secrets
    for turn in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", OPEN, str(source)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(rng.uniform(0.1, 2.0))
        if turn % 2:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for manifest_file in models().glob("[!.]*/[!.]*/*.json"):
            assert load_model(manifest_file).file.is_file()
    opened = open_model(source)

    assert load_model(opened.file.with_suffix(".json")) == opened
    assert adopted.BEING_MADE not in str(opened.file)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
def test_an_intake_that_nobody_waits_for_ends() -> None:
    """The process that reads a network has a limit on its computing, if its parent is gone."""
    said = "from segbatch.learn.intake.__main__ import _limit; import resource; _limit(16.0);"
    said += "print(resource.getrlimit(resource.RLIMIT_CPU)[1])"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)

    assert 0 < int(done.stdout) <= 900 * (os.cpu_count() or 1)


def test_half_a_model_is_not_used(tmp_path: Path) -> None:
    """A model that lost its end, as a power cut leaves it, is made again in its place."""
    source = drawn(tmp_path, "net")
    folder = elsewhere(source)
    network, manifest_file = folder / "net.onnx", folder / "net.json"
    whole, told = network.read_bytes(), manifest_file.read_bytes()
    for half, half_told in ((whole[:-9], told), (b"", told), (whole, told[:99]), (whole, b"")):
        network.write_bytes(half)
        manifest_file.write_bytes(half_told)
        opened = open_model(source)
        assert opened.file == network
        assert (network.read_bytes(), manifest_file.read_bytes()) == (whole, told)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Return a network, and what it takes on a disk of this kernel once taken in, in KiB."""
    folder = tmp_path_factory.mktemp("large")
    draw_unet(folder / "net.onnx", depth=2, base=16)
    (folder / "disk").mkdir()
    script = f"""
        mount -t tmpfs -o size=8M tmpfs "$2"
        export XDG_CACHE_HOME="$2"
        {sys.executable} -m segbatch export-engine "$1" --dry-run >&2
        df --output=used -k "$2" | tail -1
    """
    done = in_mount(script, folder / "net.onnx", folder / "disk")
    assert done.returncode == 0, done.stderr
    return folder / "net.onnx", int(done.stdout)


@needs_mount
@pytest.mark.parametrize("lacking_kib", [12, 176, 412, 472])
def test_a_full_disk_is_told_with_its_folder_and_a_way_out(
    lacking_kib: int, large: tuple[Path, int], tmp_path: Path
) -> None:
    """On a full disk intake ends with 4, names the folder, and works once there is room."""
    network, whole_kib = large
    (tmp_path / "disk").mkdir()
    script = f"""
        mount -t tmpfs -o size={max(whole_kib - lacking_kib, 4)}k tmpfs "$2"
        export XDG_CACHE_HOME="$2"
        set +e
        {sys.executable} -m segbatch export-engine "$1" --dry-run; echo "first=$?"
        find "$2" -name '*.onnx' -o -name '{adopted.BEING_MADE}*'
        mount -o remount,size=8M "$2"
        {sys.executable} -m segbatch export-engine "$1" --dry-run; echo "second=$?"
    """
    done = in_mount(script, network, tmp_path / "disk")
    after_first = done.stdout.partition("second=")[0]

    assert "first=4" in done.stdout, done.stdout + done.stderr
    assert f"cache folder {tmp_path}/disk/segbatch cannot be written: No space" in done.stderr
    assert "XDG_CACHE_HOME" in done.stderr
    assert "Traceback" not in done.stderr
    assert adopted.BEING_MADE not in after_first
    assert "second=0" in done.stdout, done.stdout + done.stderr


@needs_mount
def test_a_cache_that_may_only_be_read_serves_what_it_holds(tmp_path: Path) -> None:
    """In a read-only cache folder a known model opens, and a new one is refused by the folder."""
    (tmp_path / "disk").mkdir()
    script = f"""
        mount -t tmpfs -o size=8M tmpfs "$3"
        export XDG_CACHE_HOME="$3"
        {sys.executable} -m segbatch process "$4" --model "$1"
        mount -o remount,ro "$3"
        set +e
        {sys.executable} -m segbatch process "$4" --redo --model "$1"; echo "known=$?"
        {sys.executable} -m segbatch process "$4" --redo --model "$2"; echo "new=$?"
    """
    (tmp_path / "run").mkdir()
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(tmp_path / "run" / "a.tif")
    known, new = drawn(tmp_path, "known"), drawn(tmp_path, "new", seed=1)
    done = in_mount(script, known, new, tmp_path / "disk", tmp_path / "run")

    assert "known=0" in done.stdout, done.stdout + done.stderr
    assert "new=4" in done.stdout
    assert f"cache folder {tmp_path}/disk/segbatch cannot be written: Read-only" in done.stderr
    assert "Traceback" not in done.stderr


def test_models_that_nobody_uses_go(tmp_path: Path) -> None:
    """A model that was not used for 90 days goes when another is added, and a used one stays."""
    forgotten = elsewhere(drawn(tmp_path, "forgotten"))
    used = elsewhere(drawn(tmp_path, "used", seed=1))
    aged(forgotten)
    aged(used)
    subprocess.run([sys.executable, "-c", OPEN, str(tmp_path / "used.onnx")], check=True)
    added = elsewhere(drawn(tmp_path, "added", seed=2))

    assert not forgotten.exists()
    assert load_model(used / "used.json")
    assert load_model(added / "added.json")


def test_a_model_in_use_stays(tmp_path: Path) -> None:
    """A model that a process has opened is not removed while that process runs."""
    opened = open_model(drawn(tmp_path, "open"))
    aged(opened.file.parent)
    elsewhere(drawn(tmp_path, "added", seed=2))

    assert load_model(opened.file.with_suffix(".json")) == opened


def test_the_removal_of_an_engine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an engine, a model goes only for its age, never for room, and the log names both."""
    folders = {name: elsewhere(drawn(tmp_path, name, seed=len(name))) for name in ("a", "bb")}
    last = elsewhere(drawn(tmp_path, "ccc"))
    for name, folder in folders.items():
        (folder / f"{name}.openvino-int8.engine.json").write_text("{}")
    aged(folders["a"])
    aged(folders["bb"], 3600)
    monkeypatch.setattr(adopted, "MOST_BYTES", 1)
    with capture_logs() as lines:
        adopted.tidy(last / "ccc.json")
    [told] = [line for line in lines if line.get("engines")]

    assert told["log_level"] == "warning"
    assert told["engines"] == ["a.openvino-int8.engine.json"]
    assert told["folder"] == str(folders["a"])
    assert not folders["a"].exists()
    assert folders["bb"].exists()


def test_beyond_a_size_those_used_least_lately_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All models together are kept below a size; the newest always stays."""
    kept = [elsewhere(drawn(tmp_path, f"n{seed}", seed=seed)) for seed in range(3)]
    for age, folder in zip((300, 100, 200), kept, strict=True):
        aged(folder, age)
    size = sum(file.stat().st_size for file in kept[0].iterdir())
    monkeypatch.setattr(adopted, "MOST_BYTES", int(2.5 * size))
    adopted.tidy(kept[2] / "n2.json")
    first = [folder.exists() for folder in kept]
    monkeypatch.setattr(adopted, "MOST_BYTES", 1)
    adopted.tidy(kept[2] / "n2.json")

    assert first == [False, True, True]
    assert [folder.exists() for folder in kept] == [False, False, True]


class Endless(nn.Module):
    """A network that has no answer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Never return."""
        while bool(x.sum() < 1e30):
            x = x * 1.0
        return x


def readers(folder: Path) -> list[str]:
    """Return the processes that read a network in a folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (each / "cmdline").read_bytes().split(b"\0")
            if b"segbatch.learn.intake" in words and str(folder).encode() in b" ".join(words):
                found.append(each.name)
    return found


def until(reached: Callable[[], bool]) -> bool:
    """Wait for something, at most a minute; return whether it was reached."""
    return any(reached() or time.sleep(0.05) for _ in range(1200))


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes there")
def test_a_killed_intake_takes_its_reader_along(tmp_path: Path) -> None:
    """Where ``process`` is killed, so is what reads for it, and the next intake tidies up."""
    torch.jit.script(Endless()).save(tmp_path / "endless.pt")
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN, str(tmp_path / "endless.pt")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert until(lambda: len(readers(tmp_path)) == 1)
    time.sleep(3.0)  # in which it gets to run the network
    process.kill()
    process.wait()

    assert until(lambda: not readers(tmp_path))
    assert len(list(models().glob(f"*/{adopted.BEING_MADE}*"))) == 1
    elsewhere(drawn(tmp_path, "net"))
    assert not list(models().glob(f"*/{adopted.BEING_MADE}*"))


def test_a_folder_that_is_worked_in_stays(tmp_path: Path) -> None:
    """The folder of an intake stays however old it is, and goes once its process has ended."""
    made = elsewhere(drawn(tmp_path, "net"))
    working = made.parent / f"{adopted.BEING_MADE}now"
    working.mkdir()
    with ExitStack() as ends:
        adopted.mark_being_made(working, ends)
        aged(working)
        adopted.sweep()
        assert working.exists()
    adopted.sweep()

    assert not working.exists()
    assert load_model(made / "net.json")


def test_what_killed_processes_left_is_swept_up(tmp_path: Path) -> None:
    """Folders without a lock, where it is not known who works in them, go after a day."""
    made = elsewhere(drawn(tmp_path, "net"))
    old, young = (made.parent / f"{adopted.BEING_MADE}{name}" for name in ("old", "young"))
    for folder in (old, young):
        (folder / "model").mkdir(parents=True)
    aged(old, adopted.LEFT_BEHIND_S + 60)
    adopted.tidy(made / "net.json")

    assert not old.exists()
    assert young.exists()
