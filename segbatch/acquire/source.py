"""Open a raw file: what it is, is decided by its content, not by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from segbatch.acquire import micromanager
from segbatch.acquire.base import Options, Source
from segbatch.acquire.decode import PNG_SIGNATURE
from segbatch.acquire.raw import RawFile, unreadable
from segbatch.acquire.readers import NdtiffSource, PngSource, TiffSource
from segbatch.acquire.tiff import is_tiff, page_offsets, read_header
from segbatch.errors import UnsupportedFrameError
from segbatch.settings import PROFILE_BIT_DEPTH

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.acquire.base import Empty

__all__ = ["Source", "open_source"]


def open_source(
    path: Path,
    *,
    bit_depth: int | None,
    profile: str,
    max_file_gib: float,
    empty: Empty = np.empty,
) -> Source:
    """Open ``path`` and find its frames; no pixels are read.

    Parameters
    ----------
    bit_depth
        Bits of the converter for files that do not say, None to use the profile's.
    profile
        A key of ``segbatch.settings.PROFILE_BIT_DEPTH``.
    max_file_gib
        Largest size of one decoded frame.
    empty
        Gives the memory for pixels: called with shape and dtype, as ``numpy.empty``.

    Raises
    ------
    UnreadableFrameError
        Gone, forbidden, empty, corrupt, or without a complete frame.
    UnsupportedFrameError
        Neither TIFF nor PNG, or no regular file.
    """
    options = Options(bit_depth, PROFILE_BIT_DEPTH[profile], int(max_file_gib * 2**30), empty)
    file = RawFile(path)
    try:
        head = file.read_some(0, 8)
        if head == PNG_SIGNATURE:
            return PngSource(file, "png", 1, options)
        if is_tiff(head):
            return _open_tiff(file, options)
        if not file.size:
            raise unreadable(path, "is empty", "an image", "acquire or copy it again")
        raise UnsupportedFrameError(
            f"{path}: starts with {head!r}", "a TIFF or PNG image", "convert it, or leave it out"
        )
    except BaseException:
        file.close()
        raise


def _open_tiff(file: RawFile, options: Options) -> Source:
    header = read_header(file)
    entries = micromanager.ndtiff_entries(file.path, header.order)
    if entries or (entries is not None and micromanager.is_ndtiff(file, header.order)):
        return NdtiffSource(file, header, entries, options)
    mapped = micromanager.stack_map(file, header)
    if mapped is not None:
        offsets = [offset for offset, _ in mapped]
        return TiffSource(file, header, offsets, options, positions=[where for _, where in mapped])
    offsets, broken = page_offsets(file, header)
    return TiffSource(file, header, offsets, options, broken=broken)
