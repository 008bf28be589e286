"""How one TIFF page's pixels are laid out, checked before any of them is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segbatch.acquire.raw import content_errors, unreadable
from segbatch.errors import UnsupportedFrameError

if TYPE_CHECKING:
    from segbatch.acquire.tiff import Ifd

MINISWHITE, MINISBLACK, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
COLOURS = {MINISWHITE: 1, MINISBLACK: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3}
ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
OLD_JPEG, JPEG = 6, 7


@dataclass(frozen=True, slots=True)
class Page:
    """How one page's pixels are laid out.

    ``samples`` are stored for each pixel, ``colours`` of them are the picture
    (the rest is transparency). ``bits`` are of one stored sample, ``dtype``
    what a sample is decoded to. ``block`` is (rows, columns) of one strip or
    tile; ``offsets`` and ``counts`` (bytes) name them in TIFF's order: plane
    after plane where ``planar``, else row-major.
    """

    height: int
    width: int
    samples: int
    colours: int
    bits: int
    dtype: np.dtype[np.generic]
    photometric: int
    compression: int
    predictor: int
    fill_order: int
    planar: bool
    tiled: bool
    block: tuple[int, int]
    offsets: list[int]
    counts: list[int]

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the decoded page, with all samples."""
        return self.height * self.width * self.samples * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, int]:
        """Strips or tiles along (rows, columns) of one plane."""
        rows, columns = self.block
        return -(-self.height // rows), -(-self.width // columns)

    @property
    def is_plain(self) -> bool:
        """True where the page lies in the file as one run of whole samples, as in memory."""
        return (
            self.compression == 1
            and self.predictor == 1
            and self.fill_order == 1
            and self.samples == self.colours
            and self.bits == 8 * self.dtype.itemsize
            and self.photometric != YCBCR
            and not self.planar
            and not self.tiled
            and all(
                offset + count == following
                for offset, count, following in zip(
                    self.offsets[:-1], self.counts[:-1], self.offsets[1:], strict=True
                )
            )
        )


def read_page(ifd: Ifd, max_bytes: int) -> Page:
    """Read and check one page's layout; nothing of the page's size is allocated.

    Parameters
    ----------
    ifd
        The page's directory.
    max_bytes
        Largest decoded size accepted.

    Raises
    ------
    UnreadableFrameError
        Sizes that make no picture, or strips or tiles outside the file.
    UnsupportedFrameError
        A sound page of a kind that is not read, or one larger than ``max_bytes``.
    """
    path = ifd.file.path
    with content_errors(path, f"the page at {ifd.offset}"):
        width, height = ifd.integer(256, 0), ifd.integer(257, 0)
        samples = ifd.integer(277, 1)
        photometric = ifd.integer(262, MINISBLACK)
        compression = ifd.integer(259, 1)
        if not width or not height or not samples:
            raise unreadable(path, f"has a page of {width} x {height} pixels, {samples} samples")
        if compression == OLD_JPEG:
            raise UnsupportedFrameError(
                f"{path}: old-style JPEG (compression 6)",
                "the JPEG of TIFF Technical Note 2, or another compression",
                "save it again",
            )
        if ifd.integer(32997, 1) > 1:
            raise UnsupportedFrameError(
                f"{path}: a page with {ifd.integer(32997, 1)} planes of depth",
                "one plane a page",
                "save it as a multi-page TIFF",
            )
        colours = _colours(ifd, photometric, samples)
        bits, dtype = _sample_type(ifd, samples)
        planar = ifd.integer(284, 1) == 2 and samples > 1
        size = height * width * samples * dtype.itemsize
        if size > max_bytes:
            raise UnsupportedFrameError(
                f"{path}: a page of {width} x {height} x {samples} samples "
                f"is {size / 2**30:.4g} GiB",
                f"at most {max_bytes / 2**30:.4g} GiB (max_file_gib)",
                "raise max_file_gib if the file is what it says",
            )
        tiled = 322 in ifd.entries or 324 in ifd.entries
        if tiled:
            block = (ifd.integer(323, 0), ifd.integer(322, 0))
        else:
            block = (min(ifd.integer(278, height) or height, height), width)
        if not block[0] or not block[1] or block[0] * block[1] > max(4 * height * width, 1 << 24):
            raise unreadable(path, f"has tiles of {block[1]} x {block[0]} pixels")
        offsets, counts = _segments(ifd, tiled)
    page = Page(
        height, width, samples, colours, bits, dtype, photometric, compression,
        ifd.integer(317, 1), ifd.integer(266, 1), planar, tiled, block, offsets, counts,
    )  # fmt: skip
    return _checked(ifd, page)


def _colours(ifd: Ifd, photometric: int, samples: int) -> int:
    """Return how many leading samples are the picture; the others are transparency."""
    path = ifd.file.path
    colours = COLOURS.get(photometric)
    if colours is None:
        raise UnsupportedFrameError(
            f"{path}: photometric interpretation {photometric}",
            "gray, RGB, palette, CMYK or YCbCr",
            "convert it to gray or RGB",
        )
    if photometric == MINISBLACK and samples == 3:
        extra = ifd.array(338)
        if extra is None or not np.isin(extra, ALPHA).any():
            return 3  # three colours whose writer left the photometric tag at gray
    extras = samples - colours
    if extras < 0:
        raise unreadable(path, f"has {samples} samples a pixel", f"{colours} or more")
    if extras > 1:
        raise UnsupportedFrameError(
            f"{path}: {samples} samples a pixel", "1, 3 or 4", "save one channel a page"
        )
    return colours


def _sample_type(ifd: Ifd, samples: int) -> tuple[int, np.dtype[np.generic]]:
    """Return (bits of a stored sample, dtype of a decoded one)."""
    stored = ifd.array(258)
    formats = ifd.array(339)
    depths = {1} if stored is None else {int(bits) for bits in stored[:samples]}
    kinds = {1} if formats is None else {int(kind) for kind in formats[:samples]}
    bits, kind = max(depths), max(kinds)
    name = ""
    if len(depths) == 1 and len(kinds) == 1:
        if kind in (1, 4) and (0 < bits <= 32 or bits == 64):
            name = f"u{next(size for size in (1, 2, 4, 8) if 8 * size >= bits)}"
        elif kind == 2 and bits in (8, 16, 32, 64):
            name = f"i{bits // 8}"
        elif kind == 3 and bits in (16, 24, 32, 64):
            name = f"f{4 if bits == 24 else bits // 8}"
    if not name:
        raise UnsupportedFrameError(
            f"{ifd.file.path}: samples of {sorted(depths)} bits, format {sorted(kinds)}",
            "integers of up to 32 bits or floats of 16 to 64, all alike",
            "convert it to 16-bit gray",
        )
    return bits, np.dtype(name)


def _segments(ifd: Ifd, tiled: bool) -> tuple[list[int], list[int]]:
    """Return offsets and byte counts of the strips or tiles; counts may be empty."""
    offsets = ifd.array(324 if tiled else 273)
    if offsets is None:
        offsets = ifd.array(273)  # some writers name tiles by the strips' tags
    counts = ifd.array(325 if tiled else 279)
    if counts is None:
        counts = ifd.array(279)
    if offsets is None:
        raise unreadable(ifd.file.path, f"the page at {ifd.offset} names no pixels")
    return offsets.tolist(), [] if counts is None else counts.tolist()


def _checked(ifd: Ifd, page: Page) -> Page:
    """Return ``page`` with exactly its segments, each of them inside the file."""
    path, size = ifd.file.path, ifd.file.size
    name = "tile" if page.tiled else "strip"
    rows, columns = page.grid
    wanted = rows * columns * (page.colours if page.planar else 1)  # transparency is not read
    if len(page.offsets) < wanted:
        raise unreadable(path, f"names {len(page.offsets)} {name}s", f"{wanted} {name}s")
    raw_bytes = [0] * wanted
    if page.compression == 1:
        raw_bytes = [_raw_bytes(page, index) for index in range(wanted)]
    elif len(page.counts) < wanted:
        if page.counts or wanted > 1:
            raise unreadable(path, f"names {len(page.counts)} byte counts", f"{wanted} {name}s")
        page.counts.append(max(0, size - page.offsets[0]))
    offsets, counts = page.offsets[:wanted], page.counts[:wanted]
    counts += raw_bytes[len(counts) :]
    for index, (offset, count, raw) in enumerate(zip(offsets, counts, raw_bytes, strict=True)):
        if raw and (count == 0 or count > raw):
            counts[index] = count = raw  # noqa: PLW2901 what is read, whatever the tag says
        if not offset or not count:
            raise unreadable(path, f"{name} {index} was never written (offset 0 or no bytes)")
        if offset + count > size:
            raise unreadable(
                path,
                f"{name} {index} ends at byte {offset + count}, the file has {size}",
                f"every {name} inside the file",
                "it is truncated or still being written: copy or acquire it again",
            )
        if count < raw:
            raise unreadable(path, f"{name} {index} has {count} bytes", f"{raw} bytes")
    page.offsets[:], page.counts[:] = offsets, counts
    return page


def segment_rows(page: Page, index: int) -> int:
    """Return the rows of strip or tile ``index``; a plane's last strip holds what is left."""
    rows = page.block[0]
    if page.tiled:
        return rows
    return min(rows, page.height - (index % page.grid[0]) * rows)


def _raw_bytes(page: Page, index: int) -> int:
    """Return the bytes of an uncompressed strip or tile; each row starts on a byte."""
    samples = 1 if page.planar else page.samples
    return segment_rows(page, index) * (-(-page.block[1] * samples * page.bits // 8))
