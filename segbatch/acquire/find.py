"""Find the raw files under a folder; never take segbatch's own outputs for raw."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Container
from pathlib import Path

from segbatch.acquire.decode import PNG_SIGNATURE
from segbatch.acquire.layout import read_page
from segbatch.acquire.raw import RawFile
from segbatch.acquire.tiff import Ifd, is_tiff, read_header, read_ifd
from segbatch.errors import FrameError, UsageError
from segbatch.log import get_logger

IMAGE_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".png")
SNIFFED_SUFFIXES = ("", ".bin")  # names that tell nothing: the first bytes decide
OWN_SUFFIXES = ("_mask", "_prob", "_labels", "_truth")
OWN_SOFTWARE = "segbatch"
SOFTWARE_TAG = 305
_LARGEST_OWN_BYTES = 1 << 34  # of a decoded page of ours; nothing of that size is allocated


def find_raw_files(root: Path) -> list[Path]:
    """Return the raw files under ``root``, in natural order (``img_2`` before ``img_10``).

    Taken are files with an image suffix, and files without a telling suffix
    that start as TIFF or PNG. Left out are hidden files and folders, segbatch's own
    outputs, special files, links that leave the tree, linked folders, and the
    downsampled levels of an NDTiff pyramid.

    Parameters
    ----------
    root
        A folder, searched downwards, or one file.

    Raises
    ------
    UsageError
        ``root`` does not exist or may not be listed.
    """
    if not root.is_dir():
        if root.exists():
            return [root]
        raise UsageError(f"no such file or folder: {root}", "a folder of frames", "check the path")
    tree = root.resolve()
    found: list[Path] = []

    def refused(error: OSError) -> None:
        if Path(error.filename) == root:
            raise UsageError(
                f"{root} cannot be listed ({error.strerror})", "a readable folder", "check its mode"
            ) from error
        get_logger("acquire.find").warning(
            "folder left out", folder=str(error.filename), error=error.strerror
        )

    for folder, folders, names in os.walk(root, onerror=refused):
        folders[:] = [name for name in folders if not is_left_out(name, folders)]
        here = Path(folder)
        found += [
            here / name for name in names if not name.startswith(".") and _is_raw(here / name, tree)
        ]
    return sorted(found, key=lambda path: natural_key(path.relative_to(root)))


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


def is_frame_file(path: Path) -> bool:
    """Tell whether a file that was named by itself is a raw frame, as ``find_raw_files`` would.

    Where the name tells nothing, or something else, the first bytes decide.
    """
    if not path.is_file():
        return False
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return not is_own_output(path)
    return starts_as_image(path)


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


def is_left_out(name: str, beside: Container[str]) -> bool:
    """Tell whether a folder holds no raw files: hidden, or a level of an NDTiff pyramid."""
    return name.startswith(".") or (
        name.startswith("Downsampled_x") and "Full resolution" in beside
    )


def _is_raw(path: Path, tree: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES + SNIFFED_SUFFIXES:
        return False
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(tree):
            return False
        if not stat.S_ISREG(path.stat().st_mode):
            return False
    except (OSError, RuntimeError):  # gone meanwhile, or a link to itself
        return False
    if suffix in SNIFFED_SUFFIXES:
        return starts_as_image(path)
    return not is_own_output(path)


def starts_as_image(path: Path) -> bool:
    """Tell whether a file's first bytes are those of a TIFF or PNG."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return False
    return head == PNG_SIGNATURE or is_tiff(head)
