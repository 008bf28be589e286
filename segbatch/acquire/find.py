"""Find the raw files under a folder; never take segbatch's own outputs for raw."""

from __future__ import annotations

from pathlib import Path

from segbatch.acquire.folder.scan import Rules
from segbatch.acquire.naming import IMAGE_SUFFIXES, is_own_output, natural_key, starts_as_image
from segbatch.errors import UsageError
from segbatch.log import get_logger

__all__ = ["find_raw_files", "is_frame_file", "is_own_output", "natural_key"]


def find_raw_files(root: Path) -> list[Path]:
    """Return the raw files under ``root``, in natural order (``img_2`` before ``img_10``).

    Taken are files with an image suffix, and files without a telling suffix
    that start as TIFF or PNG. Left out are hidden files and folders, segbatch's own
    outputs, special files, links that leave the tree, linked folders, and the
    downsampled levels of an NDTiff pyramid. A mask beside the QC log of its raw
    file is an output, whoever saved it last.

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

    def hear(folder: str, error: OSError | None) -> None:
        if error is None:
            return
        if folder == str(root):
            raise UsageError(
                f"{root} cannot be listed ({error.strerror})", "a readable folder", "check its mode"
            ) from error
        get_logger("acquire.find").warning(
            "folder left out", folder=folder, error=error.strerror or str(error)
        )

    walk = Rules(root, run_depth=0, exclude=()).walk(str(root), hear)
    found = [Path(seen.path) for _, seen in walk if seen is not None]
    return sorted(found, key=lambda path: natural_key(path.relative_to(root)))


def is_frame_file(path: Path) -> bool:
    """Tell whether a file that was named by itself is a raw frame.

    Where the name tells nothing, or something else, the first bytes decide:
    whoever names a file wants it, whatever ``find_raw_files`` makes of its name.
    """
    if not path.is_file():
        return False
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return not is_own_output(path)
    return starts_as_image(path)
