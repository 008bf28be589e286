"""What is read from Micro-Manager's data sets and from other writers' metadata."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from segbatch.acquire.metadata import COARSEST_UM, from_micro_manager, moment
from segbatch.errors import UnreadableFrameError, UnsupportedFrameError
from tests.acquire.making import frame_of, mmstack, ndtiff, noise, opened


def stack(count: int = 3) -> list[np.ndarray]:
    """Return ``count`` different frames."""
    return [noise((20, 30), seed=number) for number in range(count)]


def test_an_ndtiff_set_is_read_by_its_index(tmp_path: Path) -> None:
    """Frames, axes and what the camera said come from the index and the JSON it points to."""
    path = ndtiff(tmp_path, stack())
    with opened(path) as source:
        assert (source.kind, source.frame_count, source.is_stack) == ("ndtiff", 3, True)
        for page, pixels in enumerate(stack()):
            frame = source.read(page)
            assert np.array_equal(frame.pixels, pixels)
            assert frame.bit_depth == 12
            said = frame.acquisition
            assert (said.channel, said.position) == ("DAPI", {"t": page})
            assert (said.exposure_ms, said.gain_db, said.pixel_size_um) == (20, 6, 0.345)
            assert said.acquired_at == f"2024-05-06T10:00:0{page}+02:00"


def test_a_live_ndtiff_set_shows_only_indexed_frames(tmp_path: Path) -> None:
    """An index that is preallocated or half written ends at its last whole entry."""
    path = ndtiff(tmp_path, stack())
    index = tmp_path / "NDTiff.index"
    whole = index.read_bytes()
    index.write_bytes(whole + bytes(10_000))
    with opened(path) as source:
        assert source.frame_count == 3
    index.write_bytes(whole[:-5])
    with opened(path) as source:
        assert source.frame_count == 2
    index.write_bytes(b"")
    with pytest.raises(UnreadableFrameError, match="no complete frame"):
        opened(path)


def test_an_ndtiff_stack_may_grow_while_it_is_read(tmp_path: Path) -> None:
    """Indexed frames stay readable while their writer appends to the file."""
    path = ndtiff(tmp_path, stack())
    with opened(path) as source:
        with path.open("ab") as file:
            file.write(bytes(100))
        assert np.array_equal(source.read(2).pixels, stack()[2])


def test_ndtiff_frames_outside_the_file_are_unreadable(tmp_path: Path) -> None:
    """An index that promises more than the stack holds is refused before it is allocated."""
    path = ndtiff(tmp_path, stack())
    index = tmp_path / "NDTiff.index"
    data = bytearray(index.read_bytes())
    struct.pack_into("<2I", data, len(data) - 28, 200_000, 200_000)
    index.write_bytes(data)
    with opened(path, max_file_gib=1000) as source, pytest.raises(UnreadableFrameError) as error:
        source.read(2)
    assert "200000 x 200000" in str(error.value)


def test_ndtiff_pixel_types_give_dtype_and_depth(tmp_path: Path) -> None:
    """RGB and 8-bit sets keep their samples; an unknown pixel type is named."""
    rgb = noise((10, 12, 3), "uint8")
    assert np.array_equal(frame_of(ndtiff(tmp_path, [rgb], pixel_type=2)).pixels, rgb)
    gray = noise((10, 12), "uint8")
    assert frame_of(ndtiff(tmp_path, [gray], pixel_type=0)).bit_depth == 8
    with pytest.raises(UnsupportedFrameError, match="pixel type 9"):
        frame_of(ndtiff(tmp_path, [gray], pixel_type=9))


def test_an_ndtiff_stack_without_its_index_is_read_by_its_pages(tmp_path: Path) -> None:
    """A stack that was copied without its index still gives every frame."""
    path = ndtiff(tmp_path, stack())
    (tmp_path / "NDTiff.index").unlink()
    with opened(path) as source:
        assert (source.kind, source.frame_count) == ("tiff", 3)
        assert np.array_equal(source.read(1).pixels, stack()[1])


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_image_stack_is_read_by_its_index_map(tmp_path: Path, order: str) -> None:
    """A closed image stack file gives every frame with its position and depth."""
    with opened(mmstack(tmp_path, stack(4), capacity=4, order=order)) as source:
        assert (source.kind, source.frame_count, source.is_stack) == ("mmstack", 4, True)
        for page, pixels in enumerate(stack(4)):
            frame = source.read(page)
            assert np.array_equal(frame.pixels, pixels)
            assert frame.bit_depth == 10
            assert frame.acquisition.exposure_ms == 5.5
            assert frame.acquisition.position == {"c": 0, "z": 0, "t": page, "p": 0}


def test_the_last_frame_of_an_open_image_stack_is_not_taken(tmp_path: Path) -> None:
    """While the map has room, its last entry's pixels may still be missing."""
    with opened(mmstack(tmp_path, stack(4), capacity=100)) as source:
        assert source.frame_count == 3
    with pytest.raises(UnreadableFrameError, match="no complete frame"):
        opened(mmstack(tmp_path, stack(1), capacity=100))


def test_display_settings_close_an_image_stack(tmp_path: Path) -> None:
    """A stack whose header names display settings is finished, whatever its map's capacity."""
    path = mmstack(tmp_path, stack(4), capacity=100)
    data = bytearray(path.read_bytes())
    struct.pack_into("<2I", data, 16, 483765892, 2000)
    path.write_bytes(data)
    with opened(path) as source:
        assert source.frame_count == 4


def test_separate_files_take_their_entry_of_an_unfinished_metadata_txt(tmp_path: Path) -> None:
    """A metadata.txt without its end still says what it says of a finished frame."""
    name = "img_channel001_position000_time000000004_z002.tif"
    tifffile.imwrite(tmp_path / name, noise((10, 12)), metadata=None)
    meta = {
        "BitDepth": {"PropType": "INTEGER", "PropVal": 11},
        "Core-Camera": "Zelux",
        "Zelux-Gain": "12.5",
        "Channel": "FITC",
    }
    text = '{\n"Summary": {"Prefix": "x"},\n' + f'"Metadata-{name}": {json.dumps(meta)},\n"Coords'
    (tmp_path / "metadata.txt").write_text(text)
    with opened(tmp_path / name) as source:
        assert source.kind == "micro-manager"
        frame = source.read(0)
    assert frame.bit_depth == 11
    assert frame.acquisition.gain_db == 12.5
    assert frame.acquisition.channel == "FITC"
    assert frame.acquisition.position == {"c": 1, "p": 0, "t": 4, "z": 2}


def test_separate_files_of_version_1_find_their_own_channel(tmp_path: Path) -> None:
    """Of the entries of one time and slice, the one that names the file is taken."""
    text = '{"Summary": {}'
    for channel, name in enumerate(("DAPI", "Cy5")):
        file = f"img_000000003_{name}_001.tif"
        tifffile.imwrite(tmp_path / file, noise((10, 12)), metadata=None)
        meta = {"FileName": file, "Channel": name, "BitDepth": 12, "Exposure-ms": 10 + channel}
        text += f',\n"FrameKey-3-{channel}-1": {json.dumps(meta)}'
    (tmp_path / "metadata.txt").write_text(text)
    said = frame_of(tmp_path / "img_000000003_Cy5_001.tif").acquisition
    assert (said.channel, said.exposure_ms) == ("Cy5", 11)


def test_the_info_tag_of_imagej_is_read(tmp_path: Path) -> None:
    """JSON in ImageJ's Info is what Micro-Manager said of a separate file."""
    info = json.dumps({"BitDepth": 14, "Exposure-ms": 7})
    tifffile.imwrite(tmp_path / "a.tif", noise((10, 12)), imagej=True, metadata={"Info": info})
    frame = frame_of(tmp_path / "a.tif")
    assert (frame.bit_depth, frame.acquisition.exposure_ms) == (14, 7)


def test_the_bit_depth_of_the_json_is_trusted_before_what_was_asked_for(tmp_path: Path) -> None:
    """JSON comes first, then the option, then the profile, and never more than the container."""
    path = ndtiff(tmp_path, stack(1))
    assert frame_of(path, bit_depth=16).bit_depth == 12
    tifffile.imwrite(tmp_path / "a.tif", noise((10, 12)))
    assert frame_of(tmp_path / "a.tif").bit_depth == 10
    assert frame_of(tmp_path / "a.tif", bit_depth=14).bit_depth == 14
    tifffile.imwrite(tmp_path / "b.tif", noise((10, 12), "uint8"))
    assert frame_of(tmp_path / "b.tif", bit_depth=14).bit_depth == 8


def test_ome_gives_pixel_size_channels_and_positions(tmp_path: Path) -> None:
    """An OME-TIFF's frames know their size, channel and place, page by page."""
    path = tmp_path / "a.ome.tif"
    details = {
        "axes": "TCYX",
        "PhysicalSizeX": 345.0,
        "PhysicalSizeXUnit": "nm",
        "Channel": {"Name": ["DAPI", "Cy5"]},
    }
    tifffile.imwrite(path, noise((3, 2, 10, 12)), metadata=details, photometric="minisblack")
    with opened(path) as source:
        assert (source.kind, source.frame_count) == ("ome-tiff", 6)
        said = source.read(3).acquisition
    assert said.pixel_size_um == pytest.approx(0.345)
    assert (said.channel, said.position) == ("Cy5", {"c": 1, "z": 0, "t": 1})


def test_an_ome_file_is_not_followed_into_others(tmp_path: Path) -> None:
    """A file of a set that says it has more pages than it holds gives the pages it holds."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, noise((4, 10, 12)), metadata={"axes": "TYX"}, photometric="minisblack")
    path.write_bytes(path.read_bytes().replace(b'SizeT="4"', b'SizeT="9"'))
    with opened(path) as source:
        assert source.frame_count == 4
        assert source.read(3).acquisition.position == {}


@pytest.mark.parametrize(("bits", "bit_depth"), [(12, 12), (16, 10)])
def test_significant_bits_are_a_hint_unless_they_are_the_containers(
    tmp_path: Path, bits: int, bit_depth: int
) -> None:
    """OME's SignificantBits counts before the profile, but 16 of 16 bits says nothing."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, noise((10, 12)), metadata={"axes": "YX", "SignificantBits": bits})
    assert frame_of(path).bit_depth == bit_depth
    assert frame_of(path, bit_depth=14).bit_depth == 14


@pytest.mark.parametrize(
    ("resolution", "unit", "size_um"),
    [((1e4 / 0.345, 1), 3, 0.345), ((25400, 1), 2, 1.0), ((72, 1), 2, None), ((50000, 1), 1, None)],
)
def test_resolution_tags_of_a_microscope_give_a_pixel_size(
    tmp_path: Path, resolution: tuple[float, int], unit: int, size_um: float | None
) -> None:
    """A resolution with a unit is a pixel size, one of a printer is not."""
    ratio = (int(resolution[0]), resolution[1])
    tifffile.imwrite(
        tmp_path / "a.tif", noise((10, 12)), resolution=(ratio, ratio), resolutionunit=unit
    )
    found = frame_of(tmp_path / "a.tif").acquisition.pixel_size_um
    assert found is None if size_um is None else found == pytest.approx(size_um, rel=1e-3)
    assert found is None or found < COARSEST_UM


def test_imagej_units_give_a_pixel_size(tmp_path: Path) -> None:
    """ImageJ's resolution counts pixels in the unit that its description names."""
    tifffile.imwrite(
        tmp_path / "a.tif",
        noise((10, 12)),
        imagej=True,
        resolution=(4.0, 4.0),
        metadata={"unit": "\\u00B5m"},
    )
    assert frame_of(tmp_path / "a.tif").acquisition.pixel_size_um == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2022-12-28 17:04:24 -0800", "2022-12-28T17:04:24-08:00"),
        ("2022-12-28 17:04:24.125 -0800", "2022-12-28T17:04:24.125000-08:00"),
        ("2022-12-28T17:04:24Z", "2022-12-28T17:04:24+00:00"),
        ("2022:12:28 17:04:24", "2022-12-28T17:04:24"),
        ("2022-12-28 17:04:24 -", "2022-12-28T17:04:24"),
        ("0000:00:00 00:00:00", None),
        ("1904-01-01 00:00:00", None),
        ("The age of Aquarius", None),
        (17, None),
    ],
)
def test_times_become_iso_8601_or_nothing(text: object, iso: str | None) -> None:
    """Every writer's way to tell the time is understood, and nonsense is left out."""
    assert moment(text) == iso


def test_absurd_values_are_left_out() -> None:
    """Numbers that cannot be are None, and one bad key does not cost the others."""
    said = from_micro_manager(
        {"BitDepth": -3, "Exposure": "NaN", "PixelSizeUm": 0, "Channel": ["x"], "FrameIndex": 4}
    )
    assert (said.bit_depth, said.exposure_ms, said.pixel_size_um, said.channel) == (None,) * 4
    assert said.position == {"t": 4}
