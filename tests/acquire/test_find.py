"""Which files of a folder are raw, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tifffile
from PIL import Image

from segbatch.acquire.find import find_raw_files, is_own_output
from segbatch.errors import UsageError
from tests.acquire.making import noise


def write(path: Path, software: str = "MicroManager") -> Path:
    """Write a small TIFF at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, noise((4, 4)), software=software)
    return path


def names(root: Path) -> list[str]:
    """Names of the raw files under ``root``, relative to it."""
    return [path.relative_to(root).as_posix() for path in find_raw_files(root)]


def test_files_come_in_natural_order(tmp_path: Path) -> None:
    """Numbers in names sort as numbers, in folders too."""
    wanted = ["a/img_2.tif", "a/img_10.tif", "b2/x.tif", "b10/x.tif", "img_1.tif", "img_010.TIF"]
    for name in reversed(wanted):
        write(tmp_path / name)
    assert names(tmp_path) == wanted


def test_images_are_taken_and_nothing_else(tmp_path: Path) -> None:
    """Image suffixes in any case, and files without one that start as an image."""
    for name in ("a.tif", "b.TIFF", "c.btf", "d.tf8", "e.ome.tif", "id=1,src=2"):
        write(tmp_path / name)
    Image.new("L", (4, 4)).save(tmp_path / "f.PNG")
    for name in ("metadata.txt", "display_settings.txt", "NDTiff.index", "notes", "x.jpg"):
        (tmp_path / name).write_bytes(b"MM text")
    taken = ["a.tif", "b.TIFF", "c.btf", "d.tf8", "e.ome.tif", "f.PNG", "id=1,src=2"]
    assert names(tmp_path) == taken


def test_own_outputs_are_known_by_name_and_software(tmp_path: Path) -> None:
    """Another person's ``cells_mask.tif`` is a raw frame, ours is not."""
    for suffix in ("_mask", "_prob", "_labels", "_truth", "_mask.ome"):
        assert is_own_output(write(tmp_path / f"a{suffix}.tif", "segbatch 1.0"))
    assert is_own_output(write(tmp_path / "b.tiff_mask.tif", "segbatch 1.0"))
    assert not is_own_output(write(tmp_path / "cells_mask.tif", "ImageJ"))
    assert not is_own_output(write(tmp_path / "b.tif", "segbatch 1.0"))
    (tmp_path / "torn_mask.tif").write_bytes(b"II*\0")
    assert names(tmp_path) == ["b.tif", "cells_mask.tif", "torn_mask.tif"]


def test_a_mask_that_was_corrected_by_hand_is_no_raw_frame(tmp_path: Path) -> None:
    """The QC log of its raw file, beside it, tells whose it is; without one nothing does."""
    for stem in ("a", "b", "c.ome"):
        write(tmp_path / f"{stem}.tif")
        write(tmp_path / f"{stem.removesuffix('.ome')}_mask.ome.tif", "ImageJ")
    (tmp_path / "a_qc.json").write_text("{}")
    (tmp_path / "c_qc.jsonl").write_text("{}")
    assert names(tmp_path) == ["a.tif", "b.tif", "b_mask.ome.tif", "c.ome.tif"]


def test_hidden_and_temporary_files_are_left_out(tmp_path: Path) -> None:
    """Names that start with a point are nobody's frames."""
    write(tmp_path / ".a_mask.tif.tmp")
    write(tmp_path / "._a.tif")
    write(tmp_path / ".cache" / "a.tif")
    write(tmp_path / "a.tif")
    assert names(tmp_path) == ["a.tif"]


def test_links_that_leave_the_tree_are_left_out(tmp_path: Path) -> None:
    """A link to a file inside is taken; links out, linked folders, loops and pipes are not."""
    root = tmp_path / "run"
    write(root / "a.tif")
    write(tmp_path / "outside" / "b.tif")
    (root / "inside.tif").symlink_to(root / "a.tif")
    (root / "leaving.tif").symlink_to(tmp_path / "outside" / "b.tif")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "loop.tif").symlink_to(root / "loop.tif")
    (root / "gone.tif").symlink_to(root / "nothing.tif")
    os.mkfifo(root / "pipe.tif")
    assert names(root) == ["a.tif", "inside.tif"]


def test_downsampled_levels_of_a_pyramid_are_left_out(tmp_path: Path) -> None:
    """Only the full resolution of an NDTiff pyramid holds frames."""
    for folder in ("Full resolution", "Downsampled_x2", "Downsampled_x4"):
        write(tmp_path / folder / "run_NDTiffStack.tif")
    write(tmp_path / "other" / "Downsampled_x2" / "a.tif")
    assert names(tmp_path) == [
        "Full resolution/run_NDTiffStack.tif",
        "other/Downsampled_x2/a.tif",
    ]


def test_a_file_is_taken_as_named_and_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """A named file is taken as it is; a path that does not exist is an error of use."""
    path = write(tmp_path / "a.dat")
    assert find_raw_files(path) == [path]
    with pytest.raises(UsageError, match="no such file or folder"):
        find_raw_files(tmp_path / "gone")
