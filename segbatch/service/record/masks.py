"""Masks as TIFF files that any viewer opens: palette colours, deflate, pixel size kept."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from segbatch import __version__

SOFTWARE = f"segbatch {__version__}"
STRIP_BYTES = 1 << 18  # small enough for any reader's buffer, large enough to compress well
LARGEST_CLASSIC_BYTES = 2**32 - 2**25  # of pixels: a larger TIFF needs 64-bit offsets
DEFLATE_LEVEL = 3  # masks are mostly flat: higher levels gain little and cost the run's cores

# Background black, then the eight colours of Okabe & Ito (2008), told apart by
# colour-blind readers too; further classes repeat them.
_OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (255, 255, 255),
)


def palette() -> NDArray[np.uint16]:
    """Return the TIFF ColorMap, (3, 256) uint16: black for 0, then repeated class colours."""
    colours = np.zeros((256, 3), np.uint16)
    colours[1:] = [_OKABE_ITO[index % len(_OKABE_ITO)] for index in range(255)]
    return np.ascontiguousarray(colours.T * 257)


def rows_per_strip(shape: Sequence[int], itemsize: int) -> int:
    """Return how many rows of an image of (..., Y, X) make a strip of about 256 KiB."""
    return int(min(shape[-2], max(1, STRIP_BYTES // max(1, shape[-1] * itemsize))))


def compress(page: NDArray[Any]) -> list[bytes]:
    """Return the deflated strips of one page, (Y, X) or planes (K, Y, X)."""
    rows = rows_per_strip(page.shape, page.itemsize)
    planes = np.ascontiguousarray(page if page.ndim == 3 else page[np.newaxis])
    return [
        bytes(imagecodecs.zlibng_encode(plane[top : top + rows], DEFLATE_LEVEL))
        for plane in planes
        for top in range(0, plane.shape[0], rows)
    ]


def decompress(strips: Sequence[bytes], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return the uint8 page of ``shape``, (Y, X), that ``compress`` made strips of.

    Raises
    ------
    RuntimeError, ValueError
        The strips are not those of such a page.
    """
    pixels = b"".join(bytes(imagecodecs.zlibng_decode(strip)) for strip in strips)
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def write_pages(
    handle: BinaryIO,
    pages: Sequence[tuple[tuple[int, ...], Iterator[bytes]]],
    dtype: np.dtype[Any],
    *,
    coloured: bool,
    pixel_size_um: float | None,
    ome_axes: tuple[str, tuple[int, ...]] | None = None,
) -> None:
    """Write already compressed pages as one TIFF.

    Parameters
    ----------
    handle
        Open for writing and reading.
    pages
        For each page its shape, (Y, X) or (K, Y, X), and its strips as
        ``compress`` returned them.
    dtype
        Of the pixels.
    coloured
        Class indices: shown by the palette.
    pixel_size_um
        Edge of a pixel in micrometres, or None.
    ome_axes
        For an OME-TIFF whose pages form a full grid: the axes before Y and X
        (as in ``TC``) and their lengths.
    """
    check = 0
    if pages:
        shape, strips = pages[0]
        first = list(strips)
        check = zlib.crc32(b"".join(first))
        pages = [(shape, iter(first)), *pages[1:]]
    total = sum(int(np.prod(shape)) for shape, _ in pages) * dtype.itemsize
    with tifffile.TiffWriter(
        handle, bigtiff=total > LARGEST_CLASSIC_BYTES, ome=ome_axes is not None
    ) as writer:
        shared = _tags(dtype, check, coloured=coloured, pixel_size_um=pixel_size_um)
        uniform = len({shape for shape, _ in pages}) == 1
        if ome_axes is not None and uniform:
            axes, lengths = ome_axes
            metadata: dict[str, Any] = {"axes": axes + "YX"}
            if pixel_size_um:
                metadata |= {
                    "PhysicalSizeX": pixel_size_um,
                    "PhysicalSizeXUnit": "µm",
                    "PhysicalSizeY": pixel_size_um,
                    "PhysicalSizeYUnit": "µm",
                }
            shape = pages[0][0]
            writer.write(
                (strip for _, strips in pages for strip in strips),
                shape=(*lengths, *shape),
                rowsperstrip=rows_per_strip(shape, dtype.itemsize),
                metadata=metadata,
                **shared,
            )
            return
        for shape, strips in pages:
            planar: dict[str, Any] = {"planarconfig": "separate"} if len(shape) == 3 else {}
            writer.write(
                strips,
                shape=shape,
                rowsperstrip=rows_per_strip(shape, dtype.itemsize),
                metadata=None,
                **planar,
                **shared,
            )


def software_of(check: int) -> str:
    """Name the program, with the CRC-32 of the file's first page.

    A file that another program saves anew may keep the words, but not the bytes.
    """
    return f"{SOFTWARE} {check:08x}"


def _tags(
    dtype: np.dtype[Any], check: int, *, coloured: bool, pixel_size_um: float | None
) -> dict[str, Any]:
    """Return what ``tifffile`` is told of every page."""
    tags: dict[str, Any] = {
        "dtype": dtype,
        "compression": "adobe_deflate",
        "software": software_of(check),
        "photometric": "palette" if coloured else "minisblack",
    }
    if coloured:
        tags["colormap"] = palette()
    if pixel_size_um:
        per_cm = 1e4 / pixel_size_um
        tags |= {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
    return tags
