"""Whose file is whose: raws, results, and what other people keep beside them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from segbatch.acquire.simulate import write_run
from segbatch.errors import UsageError
from tests.service import runs
from tests.service.test_changes import (
    masks,
    pixels_of,
    process_here,
    segmented,
    told,
    write_raw,
    written,
)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def write_mask_of_others(path: Path) -> bytes:
    """Write a mask as another program would; return its bytes."""
    tifffile.imwrite(path, (pixels_of(0) > 100).astype(np.uint8) * 255, software="ImageJ")
    return path.read_bytes()


def write_log_of_others(path: Path) -> bytes:
    """Write a JSON file of another tool; return its bytes."""
    path.write_text(json.dumps({"schema": "other/1", "frame": {"file": "cells.tif"}, "ok": True}))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cells_mask.tif", write_mask_of_others),
        ("cells_labels.tif", write_mask_of_others),
        ("cells_prob.tif", write_mask_of_others),
        ("cells_qc.json", write_log_of_others),
        ("cells_qc.jsonl", write_log_of_others),
    ],
)
def test_files_of_others_under_our_names_stay_as_they_are(
    tmp_path: Path, name: str, write: Callable[[Path], bytes]
) -> None:
    """A name that somebody else's file has is left to it, and results carry the raw's full name."""
    write_raw(tmp_path / "cells.tif", [1])
    foreign = write(tmp_path / name)
    for threshold in (0.5, 0.5, 0.9):
        process_here(tmp_path, threshold=threshold, save_labels=True, save_probabilities=True)
        (tmp_path / "cells.tif_mask.tif").stat()
        (tmp_path / "cells.tif_qc.json").stat()
        assert (tmp_path / name).read_bytes() == foreign
    files = written(tmp_path)
    process_here(tmp_path, threshold=0.9, save_labels=True, save_probabilities=True)

    assert written(tmp_path) == files
    ours = [r for r in tmp_path.glob("cells*_qc.json") if r.name != name]
    assert [json.loads(r.read_bytes())["frame"]["file"] for r in ours].count("cells.tif") == 1


def test_a_foreign_log_that_comes_later_costs_no_second_outcome(tmp_path: Path) -> None:
    """Another tool's log under the name of a stack's leaves each frame one outcome of ours."""
    write_raw(tmp_path / "cells.tif", [1])
    process_here(tmp_path)
    foreign = write_log_of_others(tmp_path / "cells_qc.jsonl")
    for threshold in (0.5, 0.9, 0.9):
        process_here(tmp_path, threshold=threshold)
    ours = list(tmp_path.glob("*_qc.json"))

    assert (tmp_path / "cells_qc.jsonl").read_bytes() == foreign
    assert len(ours) == 1


def test_raws_whose_names_run_into_each_other_have_results_of_their_own(tmp_path: Path) -> None:
    """Raws named like each other's results are all segmented, however often the run is repeated."""
    names = ["a.tif", "a.tiff", "a.tiff.tif", "a.tiff_mask.tif"]
    for number, name in enumerate(names):
        write_raw(tmp_path / name, [number])
    raws = {name: (tmp_path / name).read_bytes() for name in names}
    process_here(tmp_path)
    files = written(tmp_path)
    process_here(tmp_path)

    assert {name: (tmp_path / name).read_bytes() for name in names} == raws
    assert told(tmp_path) == {key: v for name in names for key, v in segmented(name).items()}
    assert written(tmp_path) == files
    mask_files = [record["mask"]["file"] for record in runs.records(tmp_path)]
    assert len(set(mask_files)) == len(names)


def test_raws_that_come_one_after_another_keep_their_results(tmp_path: Path) -> None:
    """Each raw that arrives later takes names of its own and leaves the earlier results alone."""
    names = ["a.tiff_mask.tif", "a.tiff.tif", "a.tiff", "a.tif"]
    for number, name in enumerate(names):
        before = written(tmp_path)
        write_raw(tmp_path / name, [number])
        process_here(tmp_path)
        assert written(tmp_path).items() >= before.items()

    assert told(tmp_path) == {key: v for name in names for key, v in segmented(name).items()}


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_that_leaves_the_tree_is_not_written_through(tmp_path: Path) -> None:
    """A link under a mask's name, sound or dangling, stays, and so does what it points to."""
    elsewhere = tmp_path / "elsewhere.tif"
    foreign = write_mask_of_others(elsewhere)
    run = tmp_path / "run"
    run.mkdir()
    write_raw(run / "img.tif", [1])
    write_raw(run / "lost.tif", [2])
    (run / "img_mask.tif").symlink_to(elsewhere)
    (run / "lost_mask.tif").symlink_to(tmp_path / "nowhere.tif")
    for threshold in (0.5, 0.9):
        process_here(run, threshold=threshold)

    assert elsewhere.read_bytes() == foreign
    assert (run / "img_mask.tif").is_symlink()
    assert (run / "lost_mask.tif").is_symlink()
    assert not (tmp_path / "nowhere.tif").exists()
    assert told(run) == segmented("img.tif") | segmented("lost.tif")


def test_names_that_differ_by_case_alone_are_one_name(tmp_path: Path) -> None:
    """Results never fall on a raw where upper and lower case are the same."""
    write_raw(tmp_path / "cells.tif", [1])
    foreign = write_raw(tmp_path / "Cells_Mask.tif", [2]).read_bytes()
    process_here(tmp_path)
    names = [path.name.casefold() for path in tmp_path.iterdir()]

    assert len(names) == len(set(names))
    assert (tmp_path / "Cells_Mask.tif").read_bytes() == foreign
    assert told(tmp_path) == segmented("cells.tif") | segmented("Cells_Mask.tif")


def test_out_onto_an_annotators_folder_leaves_his_masks(tmp_path: Path) -> None:
    """--out into a folder with somebody's masks overwrites none of them."""
    raw, out = tmp_path / "raw", tmp_path / "annotated"
    raw.mkdir()
    out.mkdir()
    write_raw(raw / "img_0001.tif", [1])
    foreign = write_mask_of_others(out / "img_0001_mask.tif")
    for threshold in (0.5, 0.9):
        done = runs.segbatch("process", raw, "--out", out, "--set", f"threshold={threshold}")
        assert done.returncode == 0, done.stderr

    assert (out / "img_0001_mask.tif").read_bytes() == foreign
    assert told(out) == segmented("img_0001.tif")
    assert sorted(path.name for path in raw.iterdir()) == ["img_0001.tif"]


@pytest.mark.parametrize("threshold", [0.5, 0.9])
@pytest.mark.parametrize("count", [1, 3])
def test_a_mask_corrected_by_hand_is_kept(tmp_path: Path, threshold: float, count: int) -> None:
    """A mask that another program saved anew is neither changed nor deleted by later runs."""
    write_raw(tmp_path / "a.tif", range(count))
    process_here(tmp_path, threshold=0.5)
    corrected = np.stack(masks(tmp_path / "a_mask.tif")).squeeze()
    corrected[..., :20, :20] = 1
    tifffile.imwrite(tmp_path / "a_mask.tif", corrected, photometric="minisblack")
    foreign = (tmp_path / "a_mask.tif").read_bytes()
    process_here(tmp_path, threshold=threshold)
    files = written(tmp_path)
    process_here(tmp_path, threshold=threshold)

    assert (tmp_path / "a_mask.tif").read_bytes() == foreign
    assert written(tmp_path) == files
    assert {key: v for key, v in told(tmp_path).items() if key[0] == "a.tif"} == segmented(
        "a.tif", count
    )


def test_a_corrected_mask_in_another_folder_is_kept(tmp_path: Path) -> None:
    """With --out, where a corrected mask is no frame, each frame still has one outcome."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    write_raw(raw / "a.tif", [1])
    process_here(raw, out=str(out))
    foreign = write_mask_of_others(out / "a_mask.tif")
    for threshold in (0.9, 0.9, 0.95):
        process_here(raw, out=str(out), threshold=threshold)

    assert (out / "a_mask.tif").read_bytes() == foreign
    assert told(out) == segmented("a.tif")
    (record,) = runs.records(out)
    assert record["mask"]["file"] != "a_mask.tif"


def test_a_file_named_alone_knows_its_neighbours(tmp_path: Path) -> None:
    """a.tiff processed alone leaves the stem to a.tif, which owns it."""
    write_raw(tmp_path / "a.tif", [1])
    write_raw(tmp_path / "a.tiff", [2])
    process_here(tmp_path / "a.tiff")
    process_here(tmp_path)

    assert told(tmp_path) == segmented("a.tif") | segmented("a.tiff")
    assert (tmp_path / "a.tiff_mask.tif").exists()
    files = written(tmp_path)
    process_here(tmp_path / "a.tiff")
    assert written(tmp_path) == files


def test_two_runs_never_share_a_folder_for_results(tmp_path: Path) -> None:
    """A second run into the --out of a first is refused with exit 2 and writes nothing."""
    for number, name in enumerate(("run42", "run43")):
        (tmp_path / name).mkdir()
        write_raw(tmp_path / name / "img_0001.tif", [number])
    out = tmp_path / "out"
    assert runs.segbatch("process", tmp_path / "run42", "--out", out).returncode == 0
    before = contents(out)
    done = runs.segbatch("process", tmp_path / "run43", "--out", out)

    assert done.returncode == 2
    assert "run42" in done.stderr
    assert contents(out) == before
    process_here(tmp_path / "run42", out=str(out))
    assert told(out) == segmented("img_0001.tif")


def test_the_folder_of_another_run_is_no_folder_for_results(tmp_path: Path) -> None:
    """--out that names another run's own folder is refused and leaves that run's results."""
    for number, name in enumerate(("run42", "run43")):
        (tmp_path / name).mkdir()
        write_raw(tmp_path / name / "img_0001.tif", [number])
    process_here(tmp_path / "run42")
    before = contents(tmp_path / "run42")
    with pytest.raises(UsageError, match="run42"):
        process_here(tmp_path / "run43", out=str(tmp_path / "run42"))

    assert contents(tmp_path / "run42") == before


def test_out_may_name_the_folder_itself_in_another_spelling(tmp_path: Path) -> None:
    """--out run/../run means the folder itself: nothing is redone, no raw is written to."""
    run = tmp_path / "run"
    run.mkdir()
    write_raw(run / "a.tif", [1])
    foreign = write_raw(run / "a_mask.tif", [2]).read_bytes()
    process_here(run)
    files = written(run)
    done = runs.segbatch("process", run, "--out", f"{run}/../run")

    assert done.returncode == 0, done.stderr
    assert written(run) == files
    assert (run / "a_mask.tif").read_bytes() == foreign
    assert told(run) == segmented("a.tif") | segmented("a_mask.tif")


@pytest.mark.parametrize(
    "paths",
    [
        ["run/a.tif", "run/a.tif"],
        ["run/a.tif", "./run/../run/a.tif"],
        ["run/a.tif", "{here}/run/a.tif"],
        ["run", "run/a.tif"],
        ["run/a.tif", "{here}/run"],
        ["run", "./run/"],
        ["run/*.tif", "run/a*"],
        ["run/[ab].tif", "run/b.tif", "run"],
    ],
)
def test_a_file_named_in_several_ways_has_one_outcome(tmp_path: Path, paths: list[str]) -> None:
    """Names, folders and globs that overlap, in any spelling, process each frame once."""
    (tmp_path / "run").mkdir()
    write_raw(tmp_path / "run" / "a.tif", [1])
    write_raw(tmp_path / "run" / "b.tif", [2])
    named = [text.format(here=tmp_path) for text in paths]
    done = runs.segbatch("process", *named, "--json", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)["runs"]
    asked = 1 if "run" not in " ".join(paths).replace("run/a", "").replace("run/", "") else 2
    found = told(tmp_path / "run")
    assert found.items() >= segmented("a.tif").items()
    assert report["this_run"]["frames"] == len(found) >= asked


def test_everything_in_a_folder_may_be_named(tmp_path: Path) -> None:
    """`process run/*`, twice, takes no result for a frame, redoes nothing and exits with 0."""
    run = tmp_path / "run"
    write_run(run, 8, seed=5, height_px=192, width_px=256)
    write_raw(run / "s.tif", range(3))
    for _ in range(2):
        done = runs.segbatch("process", *sorted(run.glob("[!.]*")), "--save-labels")
        assert done.returncode == 0, done.stderr
    raws = runs.raw_frames(run)

    assert set(told(run)) == {(name, page) for name, count in raws.items() for page in range(count)}
    files = written(run)
    process_here(*sorted(run.glob("[!.]*")), save_labels=True)
    assert written(run) == files


def test_summaries_never_replace_files_of_others(tmp_path: Path) -> None:
    """A file of somebody else that bears a summary's name stays; the summary takes another."""
    theirs = {"segbatch_run.json": b'{"mine": 1}', "segbatch_frames.csv": b"a;b\n1;2\n"}
    write_raw(tmp_path / "a.tif", [1])
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)
    for numbers in ([1], [1, 2]):
        write_raw(tmp_path / "a.tif", numbers)
        report = process_here(tmp_path)
        rows = Path(report.files["frames"]).read_text().splitlines()
        assert json.loads(Path(report.files["run"]).read_bytes())["counts"]["frames"] == len(
            numbers
        )
        assert len(rows) == 1 + len(numbers)

    assert {name: (tmp_path / name).read_bytes() for name in theirs} == theirs
    assert sorted(path.name for path in tmp_path.glob("segbatch_*")) == [
        "segbatch_frames.csv", "segbatch_frames_2.csv", "segbatch_run.json", "segbatch_run_2.json",
    ]  # fmt: skip


def test_folders_inside_each_other_are_refused(tmp_path: Path) -> None:
    """A folder and one below it are two runs over the same frames: exit 2, nothing written."""
    (tmp_path / "run" / "day1").mkdir(parents=True)
    write_raw(tmp_path / "run" / "a.tif", [1])
    write_raw(tmp_path / "run" / "day1" / "b.tif", [2])
    before = sorted(tmp_path.rglob("*"))
    done = runs.segbatch("process", tmp_path / "run", tmp_path / "run" / "day1")

    assert done.returncode == 2
    assert "inside" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("paths", [["run/**/*.tif"], ["run/a.tif", "run/day1/b.tif"]])
def test_files_in_folders_inside_each_other_may_be_named(tmp_path: Path, paths: list[str]) -> None:
    """Files that were named one by one, or by a glob, may lie at any depth."""
    (tmp_path / "run" / "day1").mkdir(parents=True)
    write_raw(tmp_path / "run" / "a.tif", [1])
    write_raw(tmp_path / "run" / "day1" / "b.tif", [2])
    done = runs.segbatch("process", *paths, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert told(tmp_path / "run") == segmented("a.tif")
    assert told(tmp_path / "run" / "day1") == segmented("b.tif")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("stem", ["x" * 236, "é" * 118])
def test_a_raw_may_have_the_longest_name(tmp_path: Path, stem: str, count: int) -> None:
    """A name of 240 bytes gets results of its own whose names hold no half characters."""
    raw = write_raw(tmp_path / f"{stem}.tif", range(count))
    twin = write_raw(tmp_path / f"{stem}.png.tif"[-243:], [50])
    for _ in range(2):
        report = process_here(tmp_path, save_labels=True, save_probabilities=True)
        assert report.failed == []

    assert told(tmp_path) == segmented(raw.name, count) | segmented(twin.name)
    for record in runs.records(tmp_path):
        assert (tmp_path / record["mask"]["file"]).is_file()
    for path in tmp_path.iterdir():
        os.fsencode(path.name).decode("utf-8")
    assert runs.hidden_files(tmp_path) == []


def odd_name(folder: Path, name: bytes) -> Path:
    """Return a path with a name that is no UTF-8; skips where the file system refuses it."""
    path = folder / os.fsdecode(name)
    try:
        path.touch()
        path.unlink()
    except (OSError, UnicodeError):
        pytest.skip("names must be UTF-8 on this file system")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
@pytest.mark.parametrize("content", ["single", "stack", "broken"])
def test_a_name_that_is_no_utf8_is_a_name(tmp_path: Path, content: str) -> None:
    """A raw whose name is Latin-1 is processed once, and told with its bytes escaped."""
    raw = odd_name(tmp_path, b"caf\xe9.tif")
    if content == "broken":
        raw.write_bytes(b"II*\0\x08\0\0\0 this is no image")
    else:
        write_raw(raw, range(1 if content == "single" else 3))
    write_raw(tmp_path / "b.tif", [50])
    for _ in range(2):
        done = runs.segbatch("process", tmp_path)
        assert done.returncode == (1 if content == "broken" else 0), done.stderr
        assert "Traceback" not in done.stderr
    files = written(tmp_path)
    done = runs.segbatch("process", tmp_path, "--json")

    assert json.loads(done.stdout)["runs"][0]["counts"]["frames"] == (
        4 if content == "stack" else 2
    )
    assert written(tmp_path) == files
    assert {record["frame"]["file"] for record in runs.records(tmp_path)} == {
        r"caf\xe9.tif",
        "b.tif",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_folder_whose_name_is_no_utf8_is_a_folder(tmp_path: Path) -> None:
    """Frames in folders with Latin-1 names, the run's and one below, are processed and counted."""
    run = odd_name(tmp_path, b"Stra\xdfe")
    (run / os.fsdecode(b"M\xfcller")).mkdir(parents=True)
    write_raw(run / "a.tif", [1])
    write_raw(run / os.fsdecode(b"M\xfcller") / "b.tif", [2])
    for flags in ([], ["--json"]):
        done = runs.segbatch("process", run, *flags)
        assert done.returncode == 0, done.stderr

    assert json.loads(done.stdout)["runs"][0]["counts"]["segmented"] == 2
    assert done.stderr.count("Traceback") == 0
