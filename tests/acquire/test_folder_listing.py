"""One listing of raw files, whoever asks: a watched run and a processed one are the same run."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from segbatch.acquire.find import find_raw_files
from segbatch.acquire.folder.fingerprint import fingerprint
from segbatch.acquire.folder.intake import Intake
from tests.acquire.live_writers import content, write
from tests.acquire.watching import SETTLE_S, Watched


def tiff(software: str) -> bytes:
    """Return a small TIFF."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.ones((2, 2), np.uint8), software=software)
    return file.getvalue()


CONTENTS = {
    "raw": tiff("MicroManager"),
    "ours": tiff("segbatch 1.0"),
    "png": b"\x89PNG\r\n\x1a\n",
    "torn": b"II*\0",
    "text": b"{}",
    "empty": b"",
}
FOLDERS = ("", "run", "run/Pos_1", "run/.cache", "run/Full resolution", "run/Downsampled_x2", "b")
STEMS = ("a", "a.ome", "b", ".a", "a_mask", "a_mask.ome", "A_MASK", "a_prob", "b_labels", "b_truth")
SUFFIXES = ("", ".tif", ".TIFF", ".png", ".btf", ".bin", ".tif.tmp", ".json", ".")
NAMES = st.one_of(
    st.builds("".join, st.tuples(st.sampled_from(STEMS), st.sampled_from(SUFFIXES))),
    st.sampled_from(["a_qc.json", "b_qc.jsonl", "a.ome_qc.json", "metadata.txt", "NDTiff.index"]),
)
PLACES = st.builds(os.path.join, st.sampled_from(FOLDERS), NAMES)
LINKED = st.one_of(PLACES, st.sampled_from(["..", "run", "loop", "../outside.tif"]))
FILES = st.dictionaries(PLACES, st.sampled_from([*CONTENTS, "pipe"]), max_size=12)
LINKS = st.dictionaries(PLACES, LINKED, max_size=4)


def plant(root: Path, files: dict[str, str], links: dict[str, str]) -> None:
    """Make a tree; links lead to places below ``root``, or out of it."""
    (root.parent / "outside.tif").write_bytes(CONTENTS["raw"])
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, target in links.items():
        if not os.path.lexists(root / name):  # a folder of that name stands there already
            (root / name).symlink_to(root / target)
    for name, kind in files.items():
        path = root / name
        if os.path.lexists(path):
            continue
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.write_bytes(CONTENTS[kind])


def intake_of(root: Path, run_depth: int) -> Intake:
    """Return an intake that nobody drives."""
    return Intake(root, run_depth=run_depth, settle_s=1.0, rescan_s=1.0, wake=lambda: None)


@settings(max_examples=150, deadline=None)
@given(files=FILES, links=LINKS)
def test_all_who_ask_for_raw_files_get_the_same(
    files: dict[str, str], links: dict[str, str]
) -> None:
    """By command, by the watch of a run, and one by one as events name them: the same files."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        plant(root, files, links)
        found = find_raw_files(root)
        intake = intake_of(root, 0)
        assert intake.raws(root) == found
        named = {path for path in root.rglob("*") if intake._rules.raw_at(str(path)) is not None}
        assert named == set(found)
        stats = [(path.relative_to(root).as_posix(), path.stat()) for path in found]
        summed = fingerprint((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
        assert intake.fingerprint(root) == summed
        for run in (root / "run", root / "b"):
            assert intake_of(root, 1).raws(run) == find_raw_files(run)


def test_a_link_between_two_runs_is_a_file_of_neither(tmp_path: Path) -> None:
    """A frame is one run's: what another run links to is left to where it lies."""
    write(tmp_path / "a" / "0.tif")
    write(tmp_path / "b" / "1.tif")
    (tmp_path / "b" / "linked.tif").symlink_to(tmp_path / "a" / "0.tif")
    (tmp_path / "b" / "again.tif").symlink_to(tmp_path / "b" / "1.tif")
    with Watched(tmp_path) as tree:
        tree.until_arrived("a/0.tif", "b/1.tif", "b/again.tif")
        assert tree.intake.raws(tmp_path / "b") == find_raw_files(tmp_path / "b")


def test_raws_make_a_run_unquiet_where_they_saw_more_than_was_known(tmp_path: Path) -> None:
    """Half a file that came after the last look is in the list, and so the run is not over."""
    run = tmp_path / "run"
    write(run / "0.tif")
    with Watched(tmp_path, rescan_s=3600) as tree:
        tree.until_arrived("run/0.tif")
        tree.rest()
        known = tree.intake._book.runs[str(run)]
        for change in ("new", "grown", "rewritten"):
            before = known.changed_at
            assert tree.intake.raws(run)
            assert known.changed_at == before
            if change == "rewritten":
                (run / "0.tif").write_bytes(content(7)[:-1])
            else:
                (run / "1.tif").write_bytes(content(1)[: 50 if change == "new" else 90])
            assert tree.intake.raws(run) == [run / "0.tif", run / "1.tif"]
            assert known.changed_at > before
        (run / "0.tif").write_bytes(content(7))
        (run / "1.tif").write_bytes(content(1))
        tree.until(lambda: len(tree.arrivals) == 3)
        tree.rest(2 * SETTLE_S)
        assert sorted(tree.names) == ["run/0.tif", "run/0.tif", "run/1.tif"]
