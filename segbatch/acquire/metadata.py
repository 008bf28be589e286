"""What a file says about how its frames were taken.

Metadata never costs a frame: what is absent or makes no sense is None.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from segbatch.frame import Acquisition

if TYPE_CHECKING:
    from segbatch.acquire.tiff import Ifd

UM_PER = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "inch": 25400.0}
UM_PER |= {"micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "in": 25400.0}
MS_PER = {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "min": 6e4}
# A resolution tag coarser than this is a printer's (600 dpi is 42 um), not a microscope's.
COARSEST_UM = 25.0
MAX_XML = 200_000  # characters; channels stand before the list of planes
AXIS = {"time": "t", "t": "t", "frame": "t", "channel": "c", "c": "c", "z": "z", "slice": "z"}
AXIS |= {"position": "p", "p": "p"}
_SPACE_BEFORE_ZONE = re.compile(r" (?=[+-]\d\d:?\d\d$)")
INFO_TAG, INFO_SIZES_TAG, MICRO_MANAGER_TAG, DESCRIPTION_TAG = 50839, 50838, 51123, 270


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Return the object that ``text`` holds, empty where it holds none."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:  # Java writes NaN and the like
            value = json.loads(text)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def from_micro_manager(meta: Mapping[str, Any]) -> Acquisition:
    """Read one frame's Micro-Manager JSON (all versions; NDTiff writes the same keys)."""

    def value(*names: str) -> Any:
        for name in names:
            found = meta.get(name)
            if isinstance(found, dict):  # {"PropVal": ..., "PropType": ...} of version 2
                found = found.get("PropVal", found.get("scalar"))
            if found not in (None, ""):
                return found
        return None

    camera = value("Camera", "Core-Camera")
    return Acquisition(
        bit_depth=whole(value("BitDepth", f"{camera}-BitDepth"), 1, 64),
        channel=_name(value("Channel")),
        exposure_ms=positive(value("Exposure-ms", "Exposure", f"{camera}-Exposure")),
        gain_db=number(value("TSICam-Gain", f"{camera}-Gain")),
        acquired_at=moment(value("ReceivedTime", "Time", "TimeReceivedByCore")),
        pixel_size_um=positive(value("PixelSizeUm", "PixelSize_um")),
        position=indices(
            {
                "t": value("FrameIndex", "Frame"),
                "c": value("ChannelIndex"),
                "z": value("SliceIndex", "Slice"),
                "p": value("PositionIndex"),
            }
        ),
    )


def indices(axes: Mapping[str, Any]) -> dict[str, int]:
    """Keep the axes with whole-number indices, under their short names."""
    return {
        AXIS.get(name, name): index
        for name, index in axes.items()
        if isinstance(index, int) and not isinstance(index, bool)
    }


@dataclass(frozen=True, slots=True)
class Layout:
    """What a whole file says of its pages.

    ``sizes`` are the stack's axes, fastest first, as ``(("c", 2), ("t", 10))``.
    ``bit_hint`` is a bit depth that is only worth something where nothing
    better is known.
    """

    pixel_size_um: float | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    channels: tuple[str, ...] = ()
    bit_hint: int | None = None
    acquired_at: str | None = None

    def acquisition(self, page: int, pages: int) -> Acquisition:
        """Return what is known of page ``page`` of ``pages``."""
        position: dict[str, int] = {}
        if math.prod(size for _, size in self.sizes) == pages > 1:
            rest = page
            for axis, size in self.sizes:
                rest, position[axis] = divmod(rest, size)
        channel = position.get("c", 0)
        return Acquisition(
            pixel_size_um=self.pixel_size_um,
            position=position,
            channel=self.channels[channel] if channel < len(self.channels) else None,
            acquired_at=self.acquired_at,
        )


def from_ome(xml: str) -> Layout:
    """Read the first image of an OME-XML comment (OME model 2016-06)."""
    xml = xml[:MAX_XML]
    pixels = next(_every(xml, "Pixels"), {})
    size_um = positive(pixels.get("PhysicalSizeX"))
    unit = _unit(pixels.get("PhysicalSizeXUnit", "um"))
    channels = list(_every(xml.split("</Pixels>", 1)[0], "Channel"))
    samples = sum(whole(item.get("SamplesPerPixel", "1"), 1, 64) or 1 for item in channels)
    count = {axis: whole(pixels.get(f"Size{axis}"), 1, 1 << 31) or 1 for axis in "ZCT"}
    if channels and count["C"] == samples:
        count["C"] = len(channels)
    order = pixels.get("DimensionOrder", "XYCZT")[2:]
    names = tuple(item.get("Name", "") for item in channels)
    date = re.search(r"<(?:\w+:)?AcquisitionDate>([^<]{1,64})<", xml)
    return Layout(
        pixel_size_um=size_um * UM_PER[unit] if size_um and unit in UM_PER else None,
        sizes=tuple((axis.lower(), count[axis]) for axis in order if axis in count),
        channels=names if all(names) else (),
        bit_hint=whole(pixels.get("SignificantBits"), 1, 64),
        acquired_at=moment(date[1].strip()) if date else None,
    )


def _every(xml: str, tag: str) -> Iterator[dict[str, str]]:
    """Attributes of each ``tag``; a scan, so that no entity is ever expanded."""
    for found in re.finditer(rf"<(?:\w+:)?{tag}\s([^>]{{1,4000}})>", xml):
        yield dict(re.findall(r'([\w:]{1,64})\s?=\s?"([^"]{0,1000})"', found[1]))


def imagej_entries(description: str) -> dict[str, str]:
    """Return the ``key=value`` lines of an ImageJ description, empty for another writer's."""
    if not description.startswith("ImageJ="):
        return {}
    lines = (line.partition("=") for line in description[:100_000].splitlines())
    return {key: value for key, between, value in lines if between}


def from_imagej(entries: Mapping[str, str], ratio: float) -> Layout:
    """Read an ImageJ description; ``ratio`` is the XResolution tag, pixels a unit."""
    unit = _unit(entries.get("unit", "").replace("\\u00B5", "u"))
    sizes = tuple(
        (axis, whole(entries.get(key), 1, 1 << 31) or 1)
        for axis, key in (("c", "channels"), ("z", "slices"), ("t", "frames"))
    )
    size_um = UM_PER[unit] / ratio if unit in UM_PER and ratio > 0 else None
    return Layout(pixel_size_um=size_um, sizes=sizes)


def from_resolution(ifd: Ifd) -> Layout:
    """Read the resolution (282, 296) and date (306) of a plain TIFF page."""
    unit = {2: 25400.0, 3: 1e4}.get(ifd.integer(296, 2), 0.0)
    ratio = ifd.ratio(282)
    size_um = unit / ratio if ratio > 0 else 0.0
    return Layout(
        pixel_size_um=size_um if 0 < size_um <= COARSEST_UM else None,
        acquired_at=moment(ifd.text(306)),
    )


def imagej_info(ifd: Ifd) -> str:
    """Return the "Info" text of ImageJ's metadata tags, empty where there is none.

    Tag 50838 lists byte counts: first of a table of (4-letter type, count),
    then of each entry, which stand in tag 50839 in that order.
    """
    sizes = ifd.array(INFO_SIZES_TAG)
    data = ifd.data(INFO_TAG) if sizes is not None else b""
    if sizes is None or len(data) < 12 or data[:4] not in (b"IJIJ", b"JIJI"):
        return ""
    order = ifd.header.order
    at, entry = int(sizes[0]), 1
    for place in range(4, min(int(sizes[0]), len(data)) - 7, 8):
        kind, count = struct.unpack_from(order + "4sI", data, place)
        if kind in (b"info", b"ofni"):
            if entry >= len(sizes):
                return ""
            text = data[at : at + int(sizes[entry])]
            return text.decode("utf-16-le" if order == "<" else "utf-16-be", "replace")
        at += int(sizes[entry : entry + count].sum())
        entry += count
    return ""


def merged(first: Acquisition, second: Acquisition) -> Acquisition:
    """Return ``first`` with what it leaves open taken from ``second``."""
    fields = ("bit_depth", "channel", "exposure_ms", "gain_db", "acquired_at", "pixel_size_um")
    gaps = {name: getattr(second, name) for name in fields if getattr(first, name) is None}
    return replace(first, position=first.position or second.position, **gaps)


def moment(text: Any) -> str | None:
    """Return a time as ISO 8601, None where ``text`` is none.

    Accepts ISO 8601, Micro-Manager's ``2022-12-28 17:04:24.123 -0800`` and
    TIFF's ``2022:12:28 17:04:24``. Without a zone the time stays without one.
    """
    if isinstance(text, dict):
        text = text.get("scalar")
    if not isinstance(text, str) or not 10 <= len(text) <= 40:
        return None
    text = text.strip().rstrip("-").strip()
    iso = _SPACE_BEFORE_ZONE.sub("", text)  # so that it takes a hundredth of strptime's time
    for pattern in ("", "%Y-%m-%d %H:%M:%S.%f %z", "%Y-%m-%d %H:%M:%S %z", "%Y:%m:%d %H:%M:%S"):
        try:
            found = datetime.strptime(text, pattern) if pattern else datetime.fromisoformat(iso)
        except ValueError:
            continue
        return found.isoformat() if found.year >= 1980 else None  # a clock that was never set
    return None


def number(value: Any) -> float | None:
    """Return a finite number, also one that stands as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def positive(value: Any) -> float | None:
    """Return a finite number above zero."""
    found = number(value)
    return found if found and found > 0 else None


def whole(value: Any, low: int, high: int) -> int | None:
    """Return a whole number from ``low`` to ``high``."""
    found = number(value)
    if found is None or found != int(found) or not low <= found <= high:
        return None
    return int(found)


def _name(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) and value else None


def _unit(text: str) -> str:
    return text.strip().replace("\u00b5", "u").replace("\u03bc", "u").lower()
