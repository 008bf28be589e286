"""Raw frames as files: one OME-TIFF a frame, or one growing NDTiff stack.

Both carry Micro-Manager's JSON of the frame, with the bit depth of the
converter: what OME-XML calls ``SignificantBits`` is right here, but other
writers put the container's bits there, so that readers trust the JSON first.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from xml.sax.saxutils import quoteattr

import tifffile

from segbatch import __version__, wholefile
from segbatch.acquire.micromanager import INDEX_NAME
from segbatch.errors import StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segbatch.acquire.camera.camera import Facts

# Not that of results: whoever makes those clears theirs away where they find some, and a frame that
# is being written must not go with them.
PARTIAL_SUFFIX = ".segbatch-frame-part"
FRAME_NAME = re.compile(r"img_\d{9,}\.tif")  # and no mask
MICRO_MANAGER_TAG = 51123
_OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


class Sink(Protocol):
    """Where raw frames go.

    ``threads``: how many may write at once.
    """

    threads: int

    def write(
        self, index: int, pixels: NDArray[Any], meta: Mapping[str, Any], *, sync: bool
    ) -> None:
        """Write one frame; it can be read when this returns, and survives a power cut if ``sync``.

        Raises
        ------
        OSError
            The disk is full, read-only or gone.
        """

    def close(self) -> None:
        """Finish what is open."""


def open_sink(kind: str, folder: Path, facts: Facts) -> Sink:
    """Return the writer of ``camera.format``."""
    return NdtiffSink(folder, facts) if kind == "ndtiff" else OmeTiffSink(folder, facts)


def storage_error(error: OSError, path: Path) -> StorageError:
    """Say what the operating system said of ``path``."""
    return wholefile.storage_error(
        error,
        path,
        "a folder that is there, can be written and has room",
        "free some room, or bring the drive or share back",
    )


@contextlib.contextmanager
def whole_file(final: Path, *, sync: bool) -> Iterator[BinaryIO]:
    """Open a file that takes its name only when the block ends without an error."""
    temporary = final.with_name(f".{final.name}{PARTIAL_SUFFIX}")
    with wholefile.whole_file(temporary, final, sync=sync) as handle:
        yield handle


def frame_metadata(facts: Facts, tags: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return a frame's JSON under Micro-Manager's keys, which ``acquire.metadata`` reads."""
    meta: dict[str, Any] = dict(tags)
    received = _moment(meta.get("TimeReceivedByCore"))
    meta |= {
        "BitDepth": facts.bit_depth,
        "PixelType": f"GRAY{8 * facts.bytes_per_pixel}",
        "Width": facts.width,
        "Height": facts.height,
        "Camera": facts.label,
        "Exposure-ms": facts.exposure_ms,
        "ReceivedTime": received.strftime("%Y-%m-%d %H:%M:%S.%f %z"),
        "FrameIndex": index,
        "ROI": "-".join(map(str, facts.roi_px)),
        "AcquiredBy": f"segbatch {__version__}",
    }
    if facts.gain is not None:
        meta[f"{facts.label}-Gain"] = facts.gain
    if facts.binning is not None:
        meta["Binning"] = facts.binning
    if facts.pixel_size_um > 0:
        meta["PixelSizeUm"] = facts.pixel_size_um
    with contextlib.suppress(KeyError, ValueError, TypeError):
        meta["ElapsedTime-ms"] = float(meta["ElapsedTime-ms"])
    return meta


class OmeTiffSink:
    """One OME-TIFF a frame, ``img_000000000.tif``, which appears whole under its name."""

    threads = 2  # while one waits for the disk, the other hands over the next

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.folder = folder
        self._facts = facts

    def write(
        self, index: int, pixels: NDArray[Any], meta: Mapping[str, Any], *, sync: bool
    ) -> None:
        """Write one frame."""
        size_um = self._facts.pixel_size_um
        content = io.BytesIO()  # written at once: the disk then says itself why it does not
        tifffile.imwrite(
            content,
            pixels,
            byteorder="<",
            photometric="minisblack",
            metadata=None,
            description=_ome(self._facts, meta, index),
            software=f"segbatch {__version__}",
            resolution=(1e4 / size_um, 1e4 / size_um) if size_um > 0 else None,
            resolutionunit="CENTIMETER" if size_um > 0 else None,
            extratags=[(MICRO_MANAGER_TAG, 2, 0, json.dumps(meta).encode(), True)],
        )
        with whole_file(self.folder / f"{_stem(index)}.tif", sync=sync) as handle:
            handle.write(content.getbuffer())

    def close(self) -> None:
        """Do nothing: every file is closed when it is written."""


class NdtiffSink:
    """An NDTiff data set (specification 3.3), by the parts of ndstorage's writer.

    Its data set class is not used: it keeps every frame's entry in memory,
    leaves the index in a buffer, where nobody can follow it, and writes 16
    bits for whatever depth. Here an entry is in the file when its pixels are.
    """

    threads = 1

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.folder = folder
        self._facts = facts
        self._stack: Any = None
        self._index: BinaryIO | None = None
        self._files = 0

    def write(
        self, index: int, pixels: NDArray[Any], meta: Mapping[str, Any], *, sync: bool
    ) -> None:
        """Write one frame."""
        text = json.dumps(meta).encode()
        if self._stack is not None and not self._stack.has_space_to_write(pixels, text):
            self._stack.finished_writing()
            self._stack = None
        stack = self._stack or self._begin()
        depth = self._facts.bit_depth if self._facts.bytes_per_pixel == 2 else 8
        # ndstorage knows these depths; any other stands in the JSON alone.
        depth = depth if depth in (8, 10, 11, 12, 14) else 16
        entry = stack.write_image(frozenset({"time": index}.items()), pixels, text, depth)
        stack.index_map.clear()
        assert self._index is not None  # noqa: S101 - opened with the first stack
        if sync:
            os.fsync(stack.file.fileno())
        self._index.write(entry.as_byte_buffer().getvalue())
        if sync:
            os.fsync(self._index.fileno())

    def _begin(self) -> Any:
        from ndstorage.ndtiff_file import SingleNDTiffWriter

        facts = self._facts
        summary = {
            "Width": facts.width,
            "Height": facts.height,
            "PixelType": f"GRAY{8 * facts.bytes_per_pixel}",
            "BitDepth": facts.bit_depth,
            "PixelSize_um": facts.pixel_size_um,
            "StartTime": _moment(None).isoformat(),
        }
        if self._index is None:
            self._index = (self.folder / INDEX_NAME).open("wb", buffering=0)
        name = "NDTiffStack.tif" if not self._files else f"NDTiffStack_{self._files}.tif"
        self._stack = SingleNDTiffWriter(str(self.folder), name, summary)
        self._stack.reader.close()
        self._files += 1
        return self._stack

    def close(self) -> None:
        """Cut the stack to its length, which tells readers that it is whole."""
        if self._stack is not None:
            stack, self._stack = self._stack, None
            try:
                stack.finished_writing()
            finally:
                stack.file.close()
        if self._index is not None:
            self._index.close()
            self._index = None


def _stem(index: int) -> str:
    """Return the name of a frame's file as ``FRAME_NAME`` knows it, without its end."""
    return f"img_{index:09d}"


def _ome(facts: Facts, meta: Mapping[str, Any], index: int) -> str:
    """Return the OME-XML (2016-06) of a file with one frame, in ASCII."""
    size = facts.pixel_size_um
    physical = f' PhysicalSizeX="{size:.6g}" PhysicalSizeY="{size:.6g}"' if size > 0 else ""
    elapsed = meta.get("ElapsedTime-ms")
    delta = f' DeltaT="{elapsed}" DeltaTUnit="ms"' if isinstance(elapsed, float) else ""
    moment = datetime.strptime(meta["ReceivedTime"], "%Y-%m-%d %H:%M:%S.%f %z")
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<OME xmlns="{_OME}" Creator="segbatch {__version__}">'
        f'<Image ID="Image:0" Name="{_stem(index)}">'
        f"<AcquisitionDate>{moment.isoformat()}</AcquisitionDate>"
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" BigEndian="false"'
        f' Type="uint{8 * facts.bytes_per_pixel}" SignificantBits="{facts.bit_depth}"'
        f' SizeX="{facts.width}" SizeY="{facts.height}" SizeC="1" SizeZ="1" SizeT="1"{physical}>'
        f'<Channel ID="Channel:0:0" Name={quoteattr(facts.label)} SamplesPerPixel="1"/>'
        "<TiffData/>"
        f'<Plane TheC="0" TheZ="0" TheT="0"{delta}'
        f' ExposureTime="{facts.exposure_ms:.6g}" ExposureTimeUnit="ms"/>'
        "</Pixels></Image></OME>"
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _moment(text: Any) -> datetime:
    """Return when the core received an image, with the zone; now where it did not say."""
    with contextlib.suppress(TypeError, ValueError):
        return datetime.fromisoformat(text).astimezone()
    return datetime.now().astimezone()
