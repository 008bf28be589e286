"""Files that lie, break off, or change: always an outcome, never more memory than promised."""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segbatch.errors import FrameError, UnreadableFrameError, UnsupportedFrameError
from segbatch.frame import Frame
from tests.acquire.making import (
    LONG,
    SHORT,
    directory,
    frame_of,
    header,
    memory_of_reading,
    noise,
    opened,
    page_tags,
)


def read_all(path: Path) -> list[Frame | FrameError]:
    """Read every frame of ``path``; what is raised must be a ``FrameError``."""
    outcomes: list[Frame | FrameError] = []
    try:
        with opened(path, max_file_gib=0.1) as source:
            for page in range(min(source.frame_count, 20)):
                try:
                    outcomes.append(source.read(page))
                except FrameError as error:
                    outcomes.append(error)
    except FrameError as error:
        outcomes.append(error)
    return outcomes


def test_a_header_that_promises_100_gb_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    """A page larger than allowed, or than its file, costs no memory and says why."""
    big = page_tags(250_000, 200_000, 8, 1000)
    (tmp_path / "a.tif").write_bytes(header(8) + directory(big, 0) + bytes(2000))
    with pytest.raises(UnsupportedFrameError, match=r"93\.13 GiB.*max_file_gib.*remedy"):
        frame_of(tmp_path / "a.tif")
    with (
        opened(tmp_path / "a.tif", max_file_gib=1000) as source,
        pytest.raises(UnreadableFrameError, match="strip 0 has 1000 bytes"),
    ):
        source.read(0)


def test_a_png_that_promises_100_gb_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    """The size in a PNG's header is checked before its pixels are inflated."""
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    struct.pack_into(">2I", data, 16, 300_000, 300_000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UnsupportedFrameError, match="max_file_gib"):
        frame_of(tmp_path / "a.png")


@pytest.mark.parametrize("codec", ["zlib", "lzma", "zstd"])
def test_a_compressed_bomb_stays_within_the_page(tmp_path: Path, codec: str) -> None:
    """A strip that would inflate to 256 MiB is inflated no further than its page needs."""
    content = bytes(256 << 20)
    if codec == "zlib":
        data = zlib.compress(content, 1)
    elif codec == "lzma":
        data = lzma.compress(content, preset=0)
    else:
        data = imagecodecs.zstd_encode(content, level=1)
    number = {"zlib": 8, "lzma": 34925, "zstd": 50000}[codec]
    tags = {**page_tags(10, 10, 8, len(data)), 259: (SHORT, [number])}
    path = tmp_path / "a.tif"
    path.write_bytes(header(8 + len(data)) + data + directory(tags, 0))
    assert memory_of_reading(path) < 32


def test_a_truncated_strip_is_named(tmp_path: Path) -> None:
    """A file cut short anywhere in its pixels is unreadable, and the strip is named."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((40, 40)), rowsperstrip=10)
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 900, len(whole) - 3000):
        path.write_bytes(whole[:cut])
        with pytest.raises(UnreadableFrameError, match=r"strip \d ends at byte"):
            frame_of(path)


def test_a_strip_that_was_never_written_is_unreadable(tmp_path: Path) -> None:
    """A strip at offset 0 is missing pixels, not a black band."""
    (tmp_path / "a.tif").write_bytes(header(8) + directory(page_tags(4, 4, 0, 32), 0) + bytes(99))
    with pytest.raises(UnreadableFrameError, match="strip 0 was never written"):
        frame_of(tmp_path / "a.tif")


def test_a_chain_that_comes_back_to_itself_ends(tmp_path: Path) -> None:
    """Two pages that name each other as the next are two frames."""
    size = len(directory(page_tags(4, 4, 8, 32), 0))
    first, second = 40, 40 + size
    pixels = noise((4, 4)).tobytes()
    data = header(first) + pixels
    data += directory(page_tags(4, 4, 8, 32), second) + directory(page_tags(4, 4, 8, 32), first)
    (tmp_path / "a.tif").write_bytes(data)
    with opened(tmp_path / "a.tif") as source:
        assert source.frame_count == 2
        assert np.array_equal(source.read(1).pixels, noise((4, 4)))


def test_a_chain_that_breaks_off_costs_only_what_follows(tmp_path: Path) -> None:
    """The frames before a broken link are read, and the loss is one unreadable frame more."""
    pixels = noise((4, 4)).tobytes()
    data = header(40) + pixels + directory(page_tags(4, 4, 8, 32), 1 << 30)
    (tmp_path / "a.tif").write_bytes(data)
    with opened(tmp_path / "a.tif") as source:
        assert source.frame_count == 2
        assert np.array_equal(source.read(0).pixels, noise((4, 4)))
        with pytest.raises(UnreadableFrameError, match="breaks off after 1 frames"):
            source.read(1)


def test_directories_that_overlap_do_not_make_a_chain_endless(tmp_path: Path) -> None:
    """The number of pages is bounded by the size of the file."""
    block = bytearray(struct.pack("<H", 1) * 4000)
    (tmp_path / "a.tif").write_bytes(header(8) + bytes(block))
    assert len(read_all(tmp_path / "a.tif")) <= 20


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"II*\0", "does not start as a TIFF"),
        (b"II*\0\xff\xff\xff\x7f", "names a page at"),
        (b"II+\0\x08\0\0\0", "broken BigTIFF header"),
        (b"\x89PNG\r\n\x1a\n", "names 26 bytes"),
        (b"hello, world", "starts with"),
    ],
)
def test_files_that_are_no_image_say_what_they_are(
    tmp_path: Path, content: bytes, says: str
) -> None:
    """A file without an image in it ends in an error that says what was found."""
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(FrameError, match=says):
        frame_of(tmp_path / "a.tif")


def test_folders_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    """What is no regular file is refused at once; a pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe.tif")
    for name, error in (("pipe.tif", UnsupportedFrameError), ("gone.tif", UnreadableFrameError)):
        with pytest.raises(error):
            opened(tmp_path / name)
    with pytest.raises(UnsupportedFrameError):
        opened(tmp_path)


def test_a_file_that_shrinks_changes_or_is_replaced_says_so(tmp_path: Path) -> None:
    """Pixels of a file that is no longer the one opened are not taken."""
    path = tmp_path / "a.tif"
    for change, says in (
        (lambda: os.truncate(path, 600), "shrank"),
        (lambda: os.utime(path, ns=(1, 1)), "changed"),
        (lambda: (tmp_path / "b.tif").replace(path), "was replaced"),
        (path.unlink, "vanished"),
    ):
        tifffile.imwrite(path, noise((40, 40)))
        tifffile.imwrite(tmp_path / "b.tif", noise((40, 40)))
        with opened(path) as source:
            assert source.read(0).size_bytes == path.stat().st_size
            change()
            with pytest.raises(UnreadableFrameError, match=says):
                source.read(0)


def test_size_and_time_are_those_of_the_pixels(tmp_path: Path) -> None:
    """A frame carries the size and modification time of the file it was read from."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((40, 40)))
    os.utime(path, ns=(5, 1_234_567_890_123_456_789))
    frame = frame_of(path)
    assert (frame.size_bytes, frame.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


def test_metadata_that_makes_no_sense_costs_no_frame(tmp_path: Path) -> None:
    """Tags outside the file, broken JSON and absurd numbers leave the pixels readable."""
    path = tmp_path / "a.tif"
    tags = {
        **page_tags(4, 4, 8, 32),
        270: (LONG, [1 << 30]),
        282: (LONG, [77]),
        51123: (LONG, [1 << 30]),
    }
    block = bytearray(directory(tags, 0))
    for entry in range(len(tags)):
        code = struct.unpack_from("<H", block, 2 + 12 * entry)[0]
        if code in (270, 51123):
            struct.pack_into("<HI", block, 2 + 12 * entry + 2, 2, 1000)
    path.write_bytes(header(40) + noise((4, 4)).tobytes() + block)
    assert np.array_equal(frame_of(path).pixels, noise((4, 4)))


SEEDS = {
    "plain": {},
    "tiled": {"tile": (16, 16), "compression": "zlib"},
    "predicted": {"compression": "lzw", "predictor": True},
    "imagej": {"imagej": True, "metadata": {"unit": "um", "Info": '{"BitDepth": 10}'}},
    "ome": {"ome": True},
    "jpeg": {"compression": "jpeg"},
}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Make valid files to damage."""
    folder = tmp_path_factory.mktemp("seeds")
    made = {}
    for name, options in SEEDS.items():
        pixels = noise((2, 33, 40), "uint8" if name == "jpeg" else "uint16")
        tifffile.imwrite(folder / "a.tif", pixels, photometric="minisblack", **options)
        made[name] = (folder / "a.tif").read_bytes()
    Image.fromarray(noise((33, 40), "uint8")).save(folder / "a.png")
    made["png"] = (folder / "a.png").read_bytes()
    return made


@given(
    name=st.sampled_from([*SEEDS, "png"]),
    damage=st.lists(
        st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6
    ),
    cut=st.one_of(st.none(), st.integers(0, 1 << 14)),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_always_end_in_an_outcome(
    seeds: dict[str, bytes],
    tmp_path: Path,
    name: str,
    damage: list[tuple[int, int]],
    cut: int | None,
) -> None:
    """Whatever bytes are flipped, every frame is gray or RGB pixels or an error that says why."""
    data = bytearray(seeds[name])
    for at, value in damage:
        # Half of the damage goes to the directories, which stand near the ends.
        place = at % len(data) if at % 2 else (at // 2) % 600 - 300
        data[place] = value
    (tmp_path / "a.tif").write_bytes(data[:cut])
    for outcome in read_all(tmp_path / "a.tif"):
        if isinstance(outcome, FrameError):
            assert str(tmp_path) in outcome.got
        else:
            assert outcome.pixels.ndim == 2 or outcome.pixels.shape[2] == 3
            assert outcome.pixels.nbytes <= 0.1 * 2**30


def test_reading_fits_in_little_more_than_the_frame(tmp_path: Path) -> None:
    """A compressed frame is decoded strip by strip, never held a second time."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((4000, 4000)) % 4, compression="zlib", rowsperstrip=100)
    assert memory_of_reading(path) < 45  # the frame alone is 30.5 MiB
