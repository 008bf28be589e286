"""What the name and the first bytes of a file tell: an image, or a result of segbatch."""

from __future__ import annotations

import re
import zlib
from collections.abc import Container
from pathlib import Path

from segbatch.acquire.decode import PNG_SIGNATURE
from segbatch.acquire.layout import read_page
from segbatch.acquire.raw import RawFile
from segbatch.acquire.tiff import Ifd, is_tiff, read_header, read_ifd
from segbatch.errors import FrameError

IMAGE_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".png")
SNIFFED_SUFFIXES = ("", ".bin")  # names that tell nothing: the first bytes decide
OWN_SUFFIXES = ("_mask", "_prob", "_labels", "_truth")
OWN_SOFTWARE = "segbatch"
SOFTWARE_TAG = 305
_LARGEST_OWN_BYTES = 1 << 34  # of a decoded page of ours; nothing of that size is allocated
# Results of X: what of them bears the name of an image, beside X_qc.json.
_RESULT = re.compile(r"(.+)_(?:mask|prob|labels)(?:\.ome)?\.\w+", re.IGNORECASE | re.DOTALL)


def natural_key(path: Path) -> tuple[list[tuple[str | int, ...]], str]:
    """Return a sort key in which numbers within names compare as numbers."""
    parts = [
        tuple(
            int(piece) if odd % 2 else piece.casefold()
            for odd, piece in enumerate(re.split(r"([0-9]+)", part))
        )
        for part in path.parts
    ]
    return parts, str(path)


def is_own_output(path: Path) -> bool:
    """Tell whether segbatch wrote ``path``.

    It did where the name ends as its outputs' do and the TIFF's Software tag
    starts with ``segbatch``; another person's ``cells_mask.tif`` is a raw file.
    """
    stem = re.sub(r"(\.ome)?\.\w+$", "", path.name, flags=re.IGNORECASE)
    if not any(suffix in stem.casefold() for suffix in OWN_SUFFIXES):
        return False
    try:
        file = RawFile(path)
        try:
            header = read_header(file)
            ifd = read_ifd(file, header, header.first)
            name, _, rest = ifd.text(SOFTWARE_TAG).partition(" ")
            if name != OWN_SOFTWARE:
                return False
            _, _, check = rest.partition(" ")
            return not check or check == f"{_strips_crc32(file, ifd):08x}"
        finally:
            file.close()
    except FrameError:
        return False


def _strips_crc32(file: RawFile, ifd: Ifd) -> int:
    """Return the check sum of a page's compressed strips; 0 where they are no bounded few."""
    page = read_page(ifd, _LARGEST_OWN_BYTES)
    check = 0
    for offset, count in zip(page.offsets, page.counts, strict=True):
        check = zlib.crc32(file.read(offset, count), check)
    return check


def has_log(name: str, beside: Container[str]) -> bool:
    """Tell a result by the QC log of its raw file beside it, without opening either.

    A mask that was corrected by hand, and saved by another program, is known by this alone.
    """
    found = _RESULT.fullmatch(name)
    return found is not None and any(
        f"{found[1]}_qc{suffix}" in beside for suffix in (".json", ".jsonl")
    )


def is_left_out(name: str, beside: Container[str]) -> bool:
    """Tell whether a folder holds no raw files: hidden, or a level of an NDTiff pyramid."""
    return name.startswith(".") or (
        name.startswith("Downsampled_x") and "Full resolution" in beside
    )


def starts_as_image(path: Path) -> bool:
    """Tell whether a file's first bytes are those of a TIFF or PNG."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return False
    return head == PNG_SIGNATURE or is_tiff(head)
