"""Single files are taken when they are whole, whoever writes them and however slowly."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segbatch.acquire.find import find_raw_files
from tests.acquire.live_writers import content, is_numbered, numbered, write
from tests.acquire.making import frame_of
from tests.acquire.watching import SETTLE_S, Watched


def test_files_of_tifffile_arrive_once_each(tmp_path: Path) -> None:
    """Frames written one after another arrive, each with its own content."""
    with Watched(tmp_path) as tree:
        for number in range(20):
            write(tmp_path / "run" / f"img_{number}.tif", number)
            tree.step()
        tree.until(lambda: len(tree.arrivals) == 20)
        tree.rest()
        assert len(tree.arrivals) == 20
        for arrival in tree.arrivals:
            number = int(arrival.raw.stem.removeprefix("img_"))
            assert is_numbered(frame_of(arrival.raw).pixels, number)
            assert (arrival.run, arrival.frames, arrival.closed) == (tmp_path / "run", None, True)
            stat = arrival.raw.stat()
            assert (arrival.size_bytes, arrival.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def test_arrivals_of_a_run_come_in_natural_order(tmp_path: Path) -> None:
    """What is ready together is handed over as a person would count."""
    for number in (10, 2, 1, 33, 4):
        write(tmp_path / "run" / f"img_{number}.tif", number)
    with Watched(tmp_path) as tree:
        tree.gather(5)
        tree.step()
        assert tree.names == [f"run/img_{number}.tif" for number in (1, 2, 4, 10, 33)]


@pytest.mark.parametrize("command", ["cp", "mv"])
def test_copied_and_moved_files_arrive(tmp_path: Path, command: str) -> None:
    """``cp`` and ``mv`` from outside bring whole files, in folders that are new."""
    source, root = tmp_path / "source", tmp_path / "watched"
    for number in range(30):
        write(source / "run" / str(number % 3) / f"{number}.tif", number)
    root.mkdir()
    with Watched(root) as tree:
        flags = ["-r"] if command == "cp" else []
        subprocess.run([command, *flags, str(source / "run"), str(root)], check=True)
        tree.until(lambda: len(tree.arrivals) == 30)
        for arrival in tree.arrivals:
            assert is_numbered(frame_of(arrival.raw).pixels, int(arrival.raw.stem))
            assert arrival.run == root / "run"


@pytest.mark.parametrize("flags", [["--inplace"], []])
def test_files_of_rsync_arrive(tmp_path: Path, flags: list[str]) -> None:
    """``rsync`` writes in place, or under a hidden name and renames; its frames are whole."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    source, root = tmp_path / "source", tmp_path / "watched"
    for number in range(10):
        write(source / "run" / f"{number}.tif", number)
    root.mkdir()
    with Watched(root) as tree:
        slow = ["--bwlimit=2000"]
        subprocess.run(["rsync", "-r", *slow, *flags, f"{source}/", str(root)], check=True)
        tree.until_arrived(*(f"run/{number}.tif" for number in range(10)))
        for arrival in tree.arrivals:
            assert is_numbered(frame_of(arrival.raw).pixels, int(arrival.raw.stem))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_a_writer_that_pauses_longer_than_the_quiet_time_is_waited_for(
    tmp_path: Path, options: dict[str, object]
) -> None:
    """A file is not complete because nothing happened for a while: its strips say when it is."""
    data = content(3, **options)
    path = tmp_path / "run" / "slow.tif"
    path.parent.mkdir()
    with Watched(tmp_path) as tree, path.open("wb", buffering=0) as file:
        for start in range(0, len(data), -(-len(data) // 3)):
            tree.rest(2 * SETTLE_S)
            assert not tree.arrivals
            file.write(data[start : start - (-len(data) // 3)])
        tree.until_arrived("run/slow.tif")
        assert is_numbered(frame_of(path).pixels, 3)


def test_a_slow_png_is_waited_for(tmp_path: Path) -> None:
    """A PNG is whole when its last chunk is there."""
    file = io.BytesIO()
    Image.fromarray(numbered(5)).save(file, "PNG")
    path = tmp_path / "slow.png"
    with Watched(tmp_path) as tree:
        path.write_bytes(file.getvalue()[:-6])
        tree.rest()
        assert not tree.arrivals
        path.write_bytes(file.getvalue())
        tree.until_arrived("slow.png")


def test_a_stack_whose_chain_breaks_off_is_waited_for(tmp_path: Path) -> None:
    """Every page of a stack is looked for, not only the first."""
    file = io.BytesIO()
    pages = np.stack([numbered(page) for page in range(4)])
    tifffile.imwrite(file, pages, photometric="minisblack")
    data = file.getvalue()
    with Watched(tmp_path) as tree:
        (tmp_path / "stack.tif").write_bytes(data[:-1000])
        tree.rest()
        assert not tree.arrivals
        (tmp_path / "stack.tif").write_bytes(data)
        tree.until_arrived("stack.tif")


def test_an_empty_frame_is_taken_in_the_end(tmp_path: Path) -> None:
    """Zeros that stay are a frame like any other."""
    tifffile.imwrite(tmp_path / "dark.tif", np.zeros((64, 64), np.uint16))
    with Watched(tmp_path) as tree:
        tree.until_arrived("dark.tif")


def test_a_rename_into_place_is_complete_at_once(tmp_path: Path) -> None:
    """A writer that renames when it is done does not wait for the quiet time."""
    run = tmp_path / "run"
    write(run / "0.tif")
    with Watched(tmp_path, settle_s=0.5, rescan_s=60) as tree:
        tree.until_arrived("run/0.tif")
        tree.intake._book._oracle._settle_s = 30.0  # longer than anybody waits here
        for number, name in enumerate((".hidden.tif", "frame.part", "frame.tif.tmp"), start=1):
            (run / name).write_bytes(content(number))
            (run / name).rename(run / f"{number}.tif")
        tree.until(lambda: len(tree.arrivals) == 4)
        tree.rest(0.3)
        (run / "torn.part").write_bytes(content(9)[:-100])
        (run / "torn.part").rename(run / "torn.tif")
        (run / "other.tif").write_bytes(content(9))
        (run / "other.tif").rename(run / "renamed.tif")
        tree.rest(1.0)
        assert len(tree.arrivals) == 4


def test_a_file_that_is_no_image_stays_pending(tmp_path: Path) -> None:
    """It is the end of the run that records it as failed: until then it may become one."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "text.tif").write_bytes(b"not an image")
    (tmp_path / "run" / "empty.tif").write_bytes(b"")
    with Watched(tmp_path) as tree:
        tree.rest()
        assert not tree.arrivals
        assert tree.intake.pending == 2
        assert tree.intake.runs() == [tmp_path / "run"]
        assert tree.intake.quiet_s(tmp_path / "run") >= 2 * SETTLE_S
        assert len(tree.intake.raws(tmp_path / "run")) == 2


def test_only_raw_files_of_the_tree_are_taken(tmp_path: Path) -> None:
    """Own outputs, hidden files, links that leave the tree, pipes and text files are left alone."""
    root, outside = tmp_path / "watched", tmp_path / "outside"
    write(outside / "far.tif")
    (root / "folder").mkdir(parents=True)
    with Watched(root, out=root / "results") as tree:
        write(root / "a.tif", 1)
        write(root / "a_mask.tif", software="segbatch 1.0")
        write(root / "b_truth.tif", software="segbatch 1.0")
        write(root / "cells_mask.tif", software="ImageJ")
        write(root / "c_mask.tif", software="edited")  # by hand, after it was written
        (root / "c_qc.json").write_text("{}")
        write(root / ".hidden.tif")
        write(root / ".hidden" / "a.tif")
        write(root / "results" / "copy.tif")
        write(root / "Full resolution" / "x.tif")
        write(root / "Downsampled_x2" / "x.tif")
        (root / "inside.tif").symlink_to(root / "a.tif")
        (root / "leaving.tif").symlink_to(outside / "far.tif")
        (root / "linked").symlink_to(outside)
        (root / "loop.tif").symlink_to(root / "loop.tif")
        os.mkfifo(root / "pipe.tif")
        (root / "notes.txt").write_text("x")
        write(root / "id=1").rename(root / "without_suffix")
        names = ["a.tif", "cells_mask.tif", "Full resolution/x.tif", "inside.tif", "without_suffix"]
        tree.until_arrived(*names)
        tree.rest()
        assert sorted(tree.names) == sorted(names)
        found = {path.relative_to(root).as_posix() for path in find_raw_files(root)}
        assert set(names) == found - {"results/copy.tif"}


def test_a_mask_that_is_copied_in_is_known_when_it_is_whole(tmp_path: Path) -> None:
    """While half of it is there nobody can tell who wrote it; nothing is decided then."""
    mask = write(tmp_path / "mask", software="segbatch 1.0").read_bytes()
    root = tmp_path / "watched"
    root.mkdir()
    with Watched(root) as tree:
        (root / "a_mask.tif").write_bytes(mask[:20])
        tree.until(lambda: tree.intake.pending == 1)
        (root / "a_mask.tif").write_bytes(mask)
        tree.until(lambda: tree.intake.pending == 0)
        tree.rest()
        assert not tree.arrivals
