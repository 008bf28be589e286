"""Whether each frame of a run has exactly one outcome, and nothing else lies about."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import tifffile

from segbatch.service.record.schema import QcRecord, decode
from soaking.frames import SHAPE, Run

RUN_FILES = {"segbatch_run.json", "segbatch_frames.csv"}


def is_over(run: Run) -> bool:
    """Tell whether the service says that the run is complete, with all of its frames."""
    try:
        found = json.loads((run.results / "segbatch_run.json").read_bytes())
    except (OSError, ValueError):
        return False
    counts: dict[str, Any] = found.get("counts", {})
    return found.get("state") == "complete" and counts.get("frames") == len(run.written)


def look_through(run: Run, outcomes: Counter[str]) -> list[str]:
    """Return what is wrong with the results of a run that is over; count its outcomes."""
    wrong: list[str] = []
    logs, records = _read_logs(run, wrong)
    masks: dict[str, list[QcRecord]] = {}
    expected = dict(run.written)
    for key, record in records:
        if key not in expected:
            twice = key in run.written
            wrong.append(f"{key}: {'a second outcome' if twice else 'an outcome of no frame'}")
            continue
        pixel_hash = expected.pop(key)
        outcomes[record.outcome] += 1
        if record.frame.pixel_hash != pixel_hash:
            wrong.append(f"{key}: the outcome is of other pixels")
        if (record.outcome == "failed") != (pixel_hash is None):
            wrong.append(f"{key}: {record.outcome}, {record.error}")
        if record.mask is not None:
            folder = key[0].rpartition("/")[0]
            name = f"{folder}/{record.mask.file}" if folder else record.mask.file
            masks.setdefault(name, []).append(record)
    wrong += [f"{key}: no outcome" for key in expected]
    for name, of in masks.items():
        wrong += _look_at_mask(run.results / name, of)
    raws = {file for file, _ in run.written} | run.others
    allowed = raws | logs | set(masks) | RUN_FILES
    # A stack has a mask file also where every one of its frames was rejected.
    allowed |= {
        f"{log.removesuffix('_qc.jsonl')}_mask{end}"
        for log in logs
        for end in (".tif", ".ome.tif")
        if log.endswith(".jsonl")
    }
    wrong += [f"{name}: left lying" for name in files_in(run.results, run.folder) - allowed]
    wrong += [f"{name}: the raw file is gone" for name in raws - files_in(run.folder)]
    return [f"{run.name} ({run.kind}): {text}" for text in wrong]


def files_in(*folders: Path) -> set[str]:
    """Return the names of all files below some folders, relative to them."""
    return {
        path.relative_to(folder).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def _read_logs(
    run: Run, wrong: list[str]
) -> tuple[set[str], list[tuple[tuple[str, int], QcRecord]]]:
    names: set[str] = set()
    records = []
    for path in run.results.rglob("*_qc.json*"):
        name = path.relative_to(run.results).as_posix()
        folder = name.rpartition("/")[0]
        names.add(name)
        content = path.read_bytes()
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        for line in lines:
            record = decode(line)
            if record is None:
                wrong.append(f"{name}: a record that makes no sense")
                continue
            file = f"{folder}/{record.frame.file}" if folder else record.frame.file
            records.append(((file, record.frame.page), record))
    return names, records


def _look_at_mask(path: Path, records: list[QcRecord]) -> list[str]:
    try:
        with tifffile.TiffFile(path) as file:
            pages = [record.mask.page for record in records if record.mask is not None]
            wrong = [page for page in pages if file.pages[page].asarray().shape != SHAPE]
    except (OSError, IndexError, tifffile.TiffFileError) as error:
        return [f"{path.name}: {error}"]
    return [f"{path.name}: page {page} is no mask of its frame" for page in wrong]
