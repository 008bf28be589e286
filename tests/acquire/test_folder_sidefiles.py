"""Indices that grow are read on from where they were read to, and never wrongly."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from segbatch.acquire import sidefiles
from segbatch.acquire.micromanager import metadata_txt, ndtiff_entries, saved_by_writer
from segbatch.acquire.raw import RawFile
from tests.acquire.live_writers import NdtiffWriter
from tests.acquire.making import ndtiff, noise

FRAMES = 400


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the bytes that are read from files from now on."""
    counts = [0]
    read_into = RawFile.read_into

    def counting(self: RawFile, offset: int, buffer: memoryview) -> None:
        counts[0] += len(buffer)
        read_into(self, offset, buffer)

    monkeypatch.setattr(RawFile, "read_into", counting)
    return counts


def name_of(number: int) -> str:
    """Return a name of a separate file."""
    return f"img_channel000_position000_time{number:09d}_z000.tif"


def entry_of(number: int) -> str:
    """Return what Micro-Manager writes of a separate file."""
    told = {"BitDepth": 10, "FrameIndex": number, "UserData": {"text": 'x"Metadata-y.tif": ' * 100}}
    return f',\n"Metadata-Default/{name_of(number)}": {json.dumps(told, indent=2)}'


def test_a_growing_metadata_txt_costs_the_same_for_each_frame(
    tmp_path: Path, bytes_read: list[int]
) -> None:
    """What was searched once is not searched again, and each frame finds its own entry."""
    with (tmp_path / "metadata.txt").open("w") as file:
        file.write('{\n"Summary": {}')
        file.flush()
        for number in range(FRAMES):
            assert not metadata_txt(tmp_path / name_of(number))
            assert saved_by_writer(tmp_path / name_of(number)) is False
            text = entry_of(number)
            file.write(text[:-40])
            file.flush()
            assert saved_by_writer(tmp_path / name_of(number)) is False
            file.write(text[-40:])
            file.flush()
            assert saved_by_writer(tmp_path / name_of(number)) is True
            assert metadata_txt(tmp_path / name_of(number))["FrameIndex"] == number
        size = file.tell()
    assert bytes_read[0] < FRAMES * 200_000 < FRAMES * size / 4
    assert metadata_txt(tmp_path / name_of(7))["FrameIndex"] == 7


def test_a_growing_index_costs_the_same_for_each_frame(
    tmp_path: Path, bytes_read: list[int]
) -> None:
    """Of an index that is preallocated at 25 MiB only the next block is read."""
    writer = NdtiffWriter(tmp_path)
    entry = writer.put_frame()
    for number in range(FRAMES):
        assert len(ndtiff_entries(writer.path, "<") or ()) == number
        writer.put_entry(entry)
    writer.finish()
    entries = ndtiff_entries(writer.path, "<")
    assert entries is not None
    assert len(entries) == FRAMES
    assert len(set(entries)) == 1
    assert bytes_read[0] < FRAMES * 100_000


def test_positions_that_are_visited_in_turn_cost_what_one_does(
    tmp_path: Path, bytes_read: list[int]
) -> None:
    """Micro-Manager goes from folder to folder: no file is read again for having been left."""
    folders, images, old_bytes = [tmp_path / f"Pos{n}" for n in range(60)], 10, 300_000
    for folder in folders:
        folder.mkdir()
        (folder / "metadata.txt").write_text('{"Summary": {}' + " " * old_bytes)
        assert saved_by_writer(folder / name_of(0)) is False
    once = bytes_read[0]
    for number in range(images):
        for folder in folders:
            with (folder / "metadata.txt").open("a") as file:
                file.write(entry_of(number))
            assert saved_by_writer(folder / name_of(number)) is True
    questions = images * len(folders)
    assert (bytes_read[0] - once) / questions < old_bytes / 8


def test_what_is_kept_of_side_files_is_bounded_by_their_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many large files the last used are kept, and the others are read again when asked for."""
    monkeypatch.setattr(sidefiles, "_MOST_ENTRIES", 500)
    for folder in range(12):
        (tmp_path / str(folder)).mkdir()
        text = "".join(entry_of(number) for number in range(100))
        (tmp_path / str(folder) / "metadata.txt").write_text('{"Summary": {}' + text)
        ndtiff(tmp_path / str(folder), [noise((4, 4))] * 50, pixel_type=4)
    for _ in range(2):
        for folder in range(12):
            assert metadata_txt(tmp_path / str(folder) / name_of(99))["FrameIndex"] == 99
            name = next((tmp_path / str(folder)).glob("*.tif"))
            assert len(ndtiff_entries(name, "<") or ()) == 50
            kept = [side.entry_count for side in sidefiles._shelf._sides.values()]
            assert sum(kept) <= 500
    assert len(sidefiles._shelf) >= 4


def test_side_files_of_a_run_that_is_over_are_forgotten(tmp_path: Path) -> None:
    """Nothing of them stays in memory, and what is asked later is read again."""
    for folder in ("run", "other"):
        (tmp_path / folder / "Pos0").mkdir(parents=True)
        (tmp_path / folder / "Pos0" / "metadata.txt").write_text('{"Summary": {}' + entry_of(1))
        assert saved_by_writer(tmp_path / folder / "Pos0" / name_of(1)) is True
    sidefiles.forget_side_files(tmp_path / "run")
    kept = {path for path, _ in sidefiles._shelf._sides}
    assert tmp_path / "run" / "Pos0" / "metadata.txt" not in kept
    assert tmp_path / "other" / "Pos0" / "metadata.txt" in kept
    assert saved_by_writer(tmp_path / "run" / "Pos0" / name_of(1)) is True


def test_an_index_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """Another file of that name, a shorter one, and one rewritten in place are all noticed."""
    frames = [noise((8, 9), seed=number) for number in range(30)]
    path = ndtiff(tmp_path, frames, pixel_type=4)
    assert len(ndtiff_entries(path, "<") or ()) == 30
    ndtiff(tmp_path, frames, pixel_type=3)
    assert {entry.pixel_type for entry in ndtiff_entries(path, "<") or ()} == {3}
    ndtiff(tmp_path, frames[:20], pixel_type=4)
    assert len(ndtiff_entries(path, "<") or ()) == 20
    other = tmp_path / "other"
    other.mkdir()
    ndtiff(other, frames, pixel_type=5)
    (other / "NDTiff.index").replace(tmp_path / "NDTiff.index")
    assert {entry.pixel_type for entry in ndtiff_entries(path, "<") or ()} == {5}
    (tmp_path / "NDTiff.index").unlink()
    assert ndtiff_entries(path, "<") is None


def test_a_metadata_txt_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """Entries of the file that stood there before are not believed."""
    path = tmp_path / "metadata.txt"
    path.write_text('{"Summary": {}' + entry_of(1) + entry_of(2))
    assert metadata_txt(tmp_path / name_of(1))["FrameIndex"] == 1
    path.write_text('{"Summary": {}' + entry_of(2) + entry_of(3))
    assert not metadata_txt(tmp_path / name_of(1))
    assert metadata_txt(tmp_path / name_of(3))["FrameIndex"] == 3


def test_early_builds_leave_no_entry_to_wait_for(tmp_path: Path) -> None:
    """Where only the place along the axes is written, nothing proves an image, nor forbids it."""
    path = tmp_path / "metadata.txt"
    path.write_text(f'{{"Summary": {{}},\n"Coords-{name_of(1)}": {{"time": 1}}')
    assert saved_by_writer(tmp_path / name_of(1)) is None
    assert saved_by_writer(tmp_path / name_of(2)) is False
    path.write_text("notes of the day")
    assert saved_by_writer(tmp_path / name_of(1)) is None


def test_side_files_are_read_by_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More folders than are kept in mind, and several threads in each, see their own entries."""
    monkeypatch.setattr(sidefiles, "_MOST_ENTRIES", 300)
    runs = [tmp_path / str(number) for number in range(6)]
    for number, run in enumerate(runs):
        run.mkdir()
        text = "".join(entry_of(1000 * number + frame) for frame in range(50))
        (run / "metadata.txt").write_text('{"Summary": {}' + text)
    wrong: list[tuple[int, int]] = []

    def read(start: int) -> None:
        for step in range(120):
            run, frame = (start + step) % 6, step % 50
            name = name_of(1000 * run + frame)
            if metadata_txt(runs[run] / name).get("FrameIndex") != 1000 * run + frame:
                wrong.append((run, frame))

    threads = [threading.Thread(target=read, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
