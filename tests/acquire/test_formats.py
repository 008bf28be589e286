"""What is read from sound files, whatever wrote them."""

from __future__ import annotations

import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segbatch.errors import UnsupportedFrameError
from tests.acquire.making import directory, frame_of, header, noise, opened, page_tags

CODECS = [None, "lzw", "zlib", "packbits", "zstd", "lzma"]


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
def test_every_sample_type_is_read_in_every_compression(
    tmp_path: Path, compression: str | None, dtype: str
) -> None:
    """Pixels come back as they were written, whatever their type and compression."""
    pixels = noise((37, 53), dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, compression=compression, rowsperstrip=8)
    frame = frame_of(path)
    assert frame.pixels.dtype == pixels.dtype
    assert np.array_equal(frame.pixels, pixels)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("predictor", [False, True])
def test_layouts_are_read_alike(
    tmp_path: Path, byteorder: str, tile: tuple[int, int] | None, bigtiff: bool, predictor: bool
) -> None:
    """Byte order, tiles, BigTIFF and predictors do not change the pixels."""
    pixels = noise((45, 70))
    path = tmp_path / "a.tif"
    packed = {"compression": "zlib", "predictor": True} if predictor else {}
    tifffile.imwrite(path, pixels, byteorder=byteorder, tile=tile, bigtiff=bigtiff, **packed)
    assert np.array_equal(frame_of(path).pixels, pixels)


def test_a_float_predictor_is_undone(tmp_path: Path) -> None:
    """Floats stored with the floating-point predictor come back exactly."""
    pixels = noise((30, 40), "float32")
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="zlib", predictor=3)
    frame = frame_of(tmp_path / "a.tif")
    assert np.array_equal(frame.pixels, pixels)
    assert frame.bit_depth == 0
    assert frame.ceiling is None


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("samples", [3, 4])
def test_colour_is_read_as_three_contiguous_samples(
    tmp_path: Path, planar: str, samples: int
) -> None:
    """RGB and RGBA, interleaved or in planes, become (Y, X, 3) without transparency."""
    pixels = noise((20, 30, samples), "uint8")
    stored = pixels if planar == "contig" else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    frame = frame_of(tmp_path / "a.tif")
    assert frame.axes == "YXS"
    assert frame.pixels.flags.c_contiguous
    assert np.array_equal(frame.pixels, pixels[..., :3])


def test_a_palette_page_becomes_rgb(tmp_path: Path) -> None:
    """A palette image is expanded to the colours that another reader shows."""
    image = Image.fromarray(noise((20, 30), "uint8")).convert("P", palette=Image.Palette.ADAPTIVE)
    image.putpalette(bytes(range(256)) * 3)
    image.save(tmp_path / "a.tif")
    assert np.array_equal(frame_of(tmp_path / "a.tif").pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
def test_packed_samples_are_unpacked(tmp_path: Path, bits: int) -> None:
    """Samples of fewer bits than their container keep their counts and their ceiling."""
    rows, columns = 5, 8
    values = np.random.default_rng(3).integers(0, 1 << bits, rows * columns)
    stream = "".join(f"{value:0{bits}b}" for value in values)
    data = bytes(int(stream[at : at + 8], 2) for at in range(0, len(stream), 8))
    tags = page_tags(columns, rows, 8, len(data), bits)
    (tmp_path / "a.tif").write_bytes(header(8 + len(data)) + data + directory(tags, 0))
    frame = frame_of(tmp_path / "a.tif", bit_depth=16)
    assert np.array_equal(frame.pixels.ravel(), values)
    assert frame.bit_depth == bits


def test_jpeg_pages_are_read_as_another_reader_does(tmp_path: Path) -> None:
    """JPEG compression gives the pixels that tifffile gives."""
    pixels = np.linspace(0, 255, 64 * 96 * 3).reshape(64, 96, 3).astype("uint8")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", compression="jpeg", tile=(32, 32))
    assert np.array_equal(frame_of(path).pixels, tifffile.imread(path))


def test_fax_pages_are_read(tmp_path: Path) -> None:
    """A 1-bit group 4 page is read as 0 and 1."""
    image = Image.fromarray(noise((32, 48), "uint8") > 127)
    image.save(tmp_path / "a.tif", compression="group4")
    pixels = frame_of(tmp_path / "a.tif").pixels
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        photometric = file.pages.first.photometric
    shown = np.asarray(image)
    assert np.array_equal(pixels.astype(bool), ~shown if photometric == 0 else shown)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
def test_png_is_read(tmp_path: Path, mode: str) -> None:
    """PNG of every kind becomes gray or RGB, without transparency, named as it may be."""
    if mode == "I;16":
        image = Image.fromarray(noise((20, 30)))
    else:
        image = Image.fromarray(noise((20, 30, 3), "uint8")).convert(mode)
    image.save(tmp_path / "a.tif", format="png")
    frame = frame_of(tmp_path / "a.tif")
    plain = {"LA": "L", "RGBA": "RGB", "P": "RGB", "1": "L"}.get(mode)
    assert np.array_equal(frame.pixels, np.asarray(image.convert(plain) if plain else image))
    assert frame.bit_depth == (10 if mode == "I;16" else 8)


def test_pages_are_frames_and_thumbnails_are_not(tmp_path: Path) -> None:
    """Every page is a frame of its own size; reduced-resolution pages are left out."""
    path = tmp_path / "a.tif"
    shapes = [(10, 12), (20, 24), (10, 12)]
    with tifffile.TiffWriter(path) as writer:
        for number, shape in enumerate(shapes):
            writer.write(noise(shape, seed=number), metadata=None)
            writer.write(noise((5, 6)), subfiletype=1, metadata=None)
    with opened(path) as source:
        assert source.frame_count == 3
        assert source.is_stack
        for number, shape in enumerate(shapes):
            assert np.array_equal(source.read(number).pixels, noise(shape, seed=number))
        with pytest.raises(IndexError):
            source.read(3)


def test_threads_share_a_source(tmp_path: Path) -> None:
    """Several threads reading one source get the pages they asked for."""
    path = tmp_path / "a.tif"
    pages = np.stack([noise((64, 64), seed=number) for number in range(12)])
    tifffile.imwrite(path, pages, compression="zlib")
    with opened(path) as source, ThreadPoolExecutor(6) as pool:
        frames = list(pool.map(source.read, [*range(12)] * 8))
    for frame in frames:
        assert np.array_equal(frame.pixels, pages[frame.id.page])


def test_an_imagej_stack_with_one_directory_gives_all_its_frames(tmp_path: Path) -> None:
    """The frames behind the only directory of a large ImageJ stack are found by its description."""
    pixels = noise((6, 10, 12))
    text = b"ImageJ=1.54f\nimages=6\nchannels=2\nframes=3\nhyperstack=true\nunit=micron\n\0"
    tags = page_tags(12, 10, 500, 240)
    block = bytearray(directory({**tags, 270: (4, [0])}, 0, ">"))
    struct.pack_into(">HHII", block, 2 + 12 * 5, 270, 2, len(text), 300)
    data = header(8, ">") + block
    data = data.ljust(300, b"\0") + text
    data = data.ljust(500, b"\0") + pixels.astype(">u2").tobytes()
    (tmp_path / "a.tif").write_bytes(data)
    with opened(tmp_path / "a.tif") as source:
        assert (source.kind, source.frame_count) == ("imagej", 6)
        assert np.array_equal([source.read(page).pixels for page in range(6)], pixels)
        assert source.read(5).acquisition.position == {"c": 1, "z": 0, "t": 2}


def test_a_description_copied_to_a_single_frame_makes_no_stack(tmp_path: Path) -> None:
    """A frame whose description promises frames that are not there is one frame."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((10, 12)), description="ImageJ=1.54f\nimages=9\n", metadata=None)
    with opened(path) as source:
        assert (source.frame_count, source.is_stack) == (1, False)


def test_more_samples_than_colours_are_refused(tmp_path: Path) -> None:
    """Five bands a pixel are named as unsupported, not silently dropped."""
    tifffile.imwrite(tmp_path / "a.tif", noise((10, 12, 5)), planarconfig="contig")
    with pytest.raises(UnsupportedFrameError, match="5 samples a pixel"):
        frame_of(tmp_path / "a.tif")


def test_plain_tiffs_need_no_decoder_library(tmp_path: Path) -> None:
    """Reading an uncompressed camera frame loads neither tifffile nor imagecodecs."""
    tifffile.imwrite(tmp_path / "a.tif", noise((10, 12)))
    code = (
        "import sys; from pathlib import Path; from segbatch.acquire.source import open_source; "
        "open_source(Path(sys.argv[1]), bit_depth=None, profile='zelux', max_file_gib=1).read(0); "
        "sys.exit('tifffile' in sys.modules or 'imagecodecs' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.tif")], check=True)
