"""`segbatch process` as a user meets it: what it writes, prints and answers."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import tifffile
from PIL import Image

from segbatch.acquire.simulate import write_run
from tests.service import runs


@pytest.fixture(scope="module")
def good_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run without broken files."""
    folder = tmp_path_factory.mktemp("good") / "run"
    write_run(folder, 12, seed=5, height_px=192, width_px=256)
    return folder


@pytest.fixture(scope="module")
def processed(good_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Process that run once for all tests that only look."""
    folder = tmp_path_factory.mktemp("processed") / "run"
    shutil.copytree(good_run, folder)
    done = runs.segbatch("process", folder, "--json")
    assert done.returncode == 0, done.stderr
    (folder.parent / "stdout.json").write_text(done.stdout)
    return folder


def good_frame(folder: Path) -> Path:
    """Return a raw file of the run that is a good frame."""
    kinds = json.loads((folder / "simulated.json").read_text())
    name = next(frame["file"] for frame in kinds["frames"] if frame["kind"] == "good")
    return folder / name


def test_every_record_fits_the_published_schema(processed: Path) -> None:
    """Each QC record validates against what `segbatch schema` prints."""
    schema = json.loads(runs.segbatch("schema").stdout)

    for record in runs.records(processed):
        jsonschema.validate(record, schema)
    assert len(runs.records(processed)) == 12


def test_no_verdict_stays_provisional(processed: Path) -> None:
    """At the end of a run every frame has been judged with the whole run's statistics."""
    assert not any(record["quality"]["provisional"] for record in runs.records(processed))


def test_every_record_tells_the_rules_that_decided(processed: Path) -> None:
    """A rejected frame's record holds the failed rule with its value and threshold."""
    for record in runs.records(processed):
        failed = [rule for rule in record["quality"]["rules"] if rule["failed"]]
        assert bool(failed) == (record["outcome"] == "rejected")
        assert {rule["reason"] for rule in failed} >= set(record["reasons"])


def test_json_stands_alone_on_stdout(processed: Path) -> None:
    """With --json stdout is one JSON document whose counts are conserved."""
    answer = json.loads((processed.parent / "stdout.json").read_text())
    (report,) = answer["runs"]
    counts = report["counts"]

    assert answer["error"] is None
    assert report["state"] == "complete"
    assert counts["frames"] == 12
    assert counts["segmented"] + counts["rejected"] + counts["failed"] == 12


def test_run_files_agree_with_the_records(processed: Path) -> None:
    """segbatch_run.json and segbatch_frames.csv say what the QC logs say."""
    run = json.loads((processed / "segbatch_run.json").read_text())
    with (processed / "segbatch_frames.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    told = {(row["file"], int(row["page"])): row["outcome"] for row in rows}

    assert run["schema"] == "segbatch.run/1"
    assert told == {key: value.outcome for key, value in runs.outcomes(processed).items()}
    assert run["counts"]["segmented"] == list(told.values()).count("segmented")


def test_masks_find_the_simulated_beads(processed: Path) -> None:
    """The shipped network's masks of good frames overlap the true masks by more than 0.7 IoU."""
    kinds = json.loads((processed / "simulated.json").read_text())
    overlaps = []
    for frame in kinds["frames"]:
        stem = Path(frame["file"]).stem
        if frame["kind"] == "good":
            mask = tifffile.imread(processed / f"{stem}_mask.tif") > 0
            truth = tifffile.imread(processed / f"{stem}_truth.tif") > 0
            overlaps.append((mask & truth).sum() / (mask | truth).sum())

    assert np.median(overlaps) > 0.7


def test_raw_files_are_never_touched(good_run: Path, tmp_path: Path) -> None:
    """Processing changes neither bytes nor time stamps of anything that was there before."""
    shutil.copytree(good_run, tmp_path / "run")
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()
    }
    runs.segbatch("process", tmp_path / "run")

    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before


def test_out_mirrors_the_tree_and_leaves_the_raw_folder_alone(
    good_run: Path, tmp_path: Path
) -> None:
    """With --out all results stand in the mirrored tree and none beside the raw."""
    shutil.copytree(good_run, tmp_path / "raw" / "day1" / "run")
    names = sorted(path.name for path in (tmp_path / "raw" / "day1" / "run").iterdir())
    done = runs.segbatch("process", tmp_path / "raw", "--out", tmp_path / "results")

    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "raw" / "day1" / "run").iterdir()) == names
    assert len(list((tmp_path / "results" / "day1" / "run").glob("*_qc.json"))) == 12
    assert (tmp_path / "results" / "segbatch_run.json").exists()


def test_out_inside_the_raw_folder_is_not_taken_for_input(good_run: Path, tmp_path: Path) -> None:
    """Results in a folder below the raw ones stay results in the next run."""
    shutil.copytree(good_run, tmp_path / "run")
    for _ in range(2):
        done = runs.segbatch("process", tmp_path / "run", "--out", tmp_path / "run" / "results")
        assert done.returncode == 0, done.stderr

    assert len(list((tmp_path / "run" / "results").rglob("*_qc.json"))) == 12


def test_dry_run_writes_nothing(good_run: Path, tmp_path: Path) -> None:
    """--dry-run says how much is to do and leaves the folder as it is."""
    shutil.copytree(good_run, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    done = runs.segbatch("process", tmp_path / "run", "--dry-run")

    assert done.returncode == 0
    assert "12 of 12 files to do" in done.stdout
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names


def test_single_files_and_globs_name_frames(good_run: Path, tmp_path: Path) -> None:
    """A file and a glob are processed where they lie, their neighbours are not."""
    shutil.copytree(good_run, tmp_path / "run")
    one = runs.segbatch("process", tmp_path / "run" / "img_0001.tif")
    some = runs.segbatch("process", tmp_path / "run" / "img_000[2-4].tif")

    assert (one.returncode, some.returncode) == (0, 0)
    done = sorted(path.name for path in (tmp_path / "run").glob("*_qc.json"))
    assert done == [f"img_000{number}_qc.json" for number in (1, 2, 3, 4)]


def test_somebody_elses_mask_is_a_frame(good_run: Path, tmp_path: Path) -> None:
    """A raw file that is called like a mask is processed and never overwritten."""
    raw = good_frame(good_run)
    shutil.copy(raw, tmp_path / "cells.tif")
    foreign = tifffile.imread(raw)[::-1]
    tifffile.imwrite(tmp_path / "cells_mask.tif", foreign)
    before = (tmp_path / "cells_mask.tif").read_bytes()
    done = runs.segbatch("process", tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cells_mask.tif").read_bytes() == before
    assert set(runs.outcomes(tmp_path)) == {("cells.tif", 0), ("cells_mask.tif", 0)}


def test_two_raws_of_one_stem_have_results_of_their_own(good_run: Path, tmp_path: Path) -> None:
    """a.tif and a.tiff are both segmented, the second under its full name, however often run."""
    raw = good_frame(good_run)
    shutil.copy(raw, tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tiff", tifffile.imread(raw)[:, ::-1])
    for _ in range(2):
        assert runs.segbatch("process", tmp_path).returncode == 0

    assert (tmp_path / "a_mask.tif").exists()
    assert (tmp_path / "a.tiff_mask.tif").exists()
    assert set(runs.outcomes(tmp_path)) == {("a.tif", 0), ("a.tiff", 0)}


def test_png_frames_are_processed(good_run: Path, tmp_path: Path) -> None:
    """An 8-bit PNG is read, segmented and recorded like any TIFF."""
    pixels = tifffile.imread(good_frame(good_run))
    Image.fromarray((pixels >> 2).astype(np.uint8)).save(tmp_path / "a.png")
    done = runs.segbatch("process", tmp_path)

    assert done.returncode == 0, done.stderr
    assert runs.outcomes(tmp_path)["a.png", 0].outcome == "segmented"
    assert tifffile.imread(tmp_path / "a_mask.tif").shape == pixels.shape


def test_probabilities_and_labels_are_written_when_asked(good_run: Path, tmp_path: Path) -> None:
    """_prob.tif holds probabilities that explain the mask, _labels.tif its numbered objects."""
    shutil.copy(good_frame(good_run), tmp_path / "a.tif")
    done = runs.segbatch("process", tmp_path, "--save-probabilities", "--save-labels")
    mask = tifffile.imread(tmp_path / "a_mask.tif")
    (record,) = runs.records(tmp_path)

    assert done.returncode == 0, done.stderr
    assert np.array_equal(tifffile.imread(tmp_path / "a_prob.tif") > 0.5, mask > 0)
    labels = tifffile.imread(tmp_path / "a_labels.tif")
    assert np.array_equal(labels > 0, mask > 0)
    assert labels.max() == record["mask"]["object_count"]


def test_a_stack_has_a_mask_page_and_a_line_for_every_frame(tmp_path: Path) -> None:
    """Page i of the mask and line i of the log answer for frame i of an OME stack."""
    scratch = tmp_path / "scratch"
    write_run(scratch, 8, seed=6, height_px=192, width_px=256)
    pages = np.stack([tifffile.imread(p) for p in sorted(scratch.glob("img_????.tif"))])
    (tmp_path / "run").mkdir()
    tifffile.imwrite(
        tmp_path / "run" / "a.ome.tif",
        pages.reshape(4, 2, 192, 256),
        metadata={"axes": "TCYX", "PhysicalSizeX": 0.345, "PhysicalSizeXUnit": "µm"},
        photometric="minisblack",
    )
    done = runs.segbatch("process", tmp_path / "run")
    found = runs.outcomes(tmp_path / "run")

    assert done.returncode == 0, done.stderr
    assert [page for _, page in sorted(found)] == list(range(8))
    with tifffile.TiffFile(tmp_path / "run" / "a_mask.ome.tif") as file:
        assert (file.series[0].axes, file.series[0].shape) == ("TCYX", (4, 2, 192, 256))
        assert 'PhysicalSizeX="0.345' in (file.ome_metadata or "")
        for (_, page), outcome in found.items():
            blank = not file.pages[page].asarray().any()
            assert blank or outcome.outcome == "segmented"


@pytest.mark.parametrize("pages", [1, 3])
def test_the_end_of_a_run_mends_verdicts_in_both_directions(
    good_run: Path, tmp_path: Path, pages: int
) -> None:
    """When an earlier twin of processed frames appears, it takes their place as the original."""
    pixels = tifffile.imread(good_frame(good_run))
    content = np.stack([np.roll(pixels, 7 * page, axis=1) for page in range(pages)])
    tifffile.imwrite(tmp_path / "b.tif", content, photometric="minisblack")
    assert runs.segbatch("process", tmp_path).returncode == 0
    assert {o.outcome for o in runs.outcomes(tmp_path).values()} == {"segmented"}
    tifffile.imwrite(tmp_path / "a.tif", content, photometric="minisblack")
    assert runs.segbatch("process", tmp_path).returncode == 0
    found = runs.outcomes(tmp_path)

    for page in range(pages):
        assert found["a.tif", page].outcome == "segmented"
        assert found["b.tif", page].reasons == ("duplicate",)
    assert (tmp_path / "b_mask.tif").exists() == (pages > 1)
    assert runs.hidden_files(tmp_path) == []


def test_pixels_above_the_stated_depth_are_warned_of(tmp_path: Path) -> None:
    """Counts above the declared ceiling bring a warning that names the file and the remedy."""
    rng = np.random.default_rng(1)
    pixels = rng.normal(3000, 30, (128, 128)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    done = runs.segbatch("process", tmp_path)

    assert "above" in done.stderr
    assert "--bit-depth" in done.stderr
    assert "a.tif" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["/no/such/folder"], 2, "no such file or folder"),
        (["{run}", "--engine", "tensorflow"], 2, "engine"),
        (["{run}", "--tile-px", "7"], 2, "tile_px"),
        (["{run}", "--set", "quality.blurr_z=3"], 2, "did you mean quality.blur"),
        (["{run}", "--set", "nonsense"], 2, "KEY=VALUE"),
        (["{run}", "--config", "/no/such.toml"], 2, "/no/such.toml"),
        (["{run}", "--no-such-flag"], 2, "--no-such-flag"),
        (["{run}", "--model", "/no/model.onnx"], 3, "/no/model.onnx"),
        (["{empty}"], 2, "no frames"),
    ],
)
def test_wrong_use_is_told_with_its_remedy(
    good_run: Path, tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    """Wrong input ends with its exit code and a message that says what and how, no traceback."""
    given = [text.format(run=good_run, empty=tmp_path) for text in arguments]
    done = runs.segbatch("process", *given)

    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_qc_judges_and_writes_nothing(good_run: Path, tmp_path: Path) -> None:
    """`segbatch qc` prints the verdicts that `process` comes to, and leaves no file."""
    shutil.copytree(good_run, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    done = runs.segbatch("qc", tmp_path / "run", "--json")
    lines = json.loads(done.stdout)
    kinds = json.loads((good_run / "simulated.json").read_text())["frames"]

    assert done.returncode == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names
    assert [line["outcome"] == "accepted" for line in lines] == [
        frame["kind"] == "good" for frame in kinds
    ]


def test_doctor_finds_a_working_machine(tmp_path: Path) -> None:
    """`segbatch doctor` answers 0 here and looks at packages, engines and the named folder."""
    done = runs.segbatch("doctor", tmp_path, "--json")
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}

    assert done.returncode == 0, done.stdout
    assert found["engine onnxruntime"]["standing"] == "ok"
    assert found[str(tmp_path)]["standing"] in {"ok", "note"}


def test_doctor_names_the_remedy_of_what_is_missing(tmp_path: Path) -> None:
    """A folder that does not exist is a finding with a remedy and exit code 1."""
    done = runs.segbatch("doctor", tmp_path / "gone")

    assert done.returncode == 1
    assert "no such folder" in done.stdout
    assert "remedy" in done.stdout
