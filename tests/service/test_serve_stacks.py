"""The service and stacks that are still being written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tifffile

from segbatch.service.record import schema
from segbatch.service.record.schema import QcRecord
from tests.acquire.live_writers import ImageStackWriter, NdtiffWriter
from tests.service.runs import hidden_files, segbatch
from tests.service.serving import Service, run_file

FRAMES = 9
Writer = ImageStackWriter | NdtiffWriter
MAKE: dict[str, Callable[[Path], Writer]] = {
    "image stack": lambda run: ImageStackWriter(run / "run_MMStack_Pos0.ome.tif", FRAMES),
    "ndtiff": NdtiffWriter,
}


def journal(run: Path) -> list[QcRecord]:
    """Return the records of a stack that is under way."""
    found = [path for path in run.glob(".*") if path.name.endswith(".segbatch-journal")]
    lines = found[0].read_bytes().splitlines() if found else []
    return [record for line in lines if (record := schema.decode(line)) is not None]


def published(run: Path) -> list[QcRecord]:
    """Return the records of a stack that is finished."""
    found = list(run.glob("*_qc.jsonl"))
    lines = found[0].read_bytes().splitlines() if found else []
    return [record for line in lines if (record := schema.decode(line)) is not None]


@pytest.mark.parametrize("kind", MAKE)
def test_frames_of_a_stack_are_recorded_as_they_arrive(tmp_path: Path, kind: str) -> None:
    """Each frame has its outcome before the stack ends; at its end log and masks are whole."""
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    with Service([run.parent], tmp_path / "state", settings={"serve.run_quiet_s": 20}) as service:
        service.ready()
        writer = MAKE[kind](run)
        for _ in range(4):
            writer.put()
        service.until(lambda: len(journal(run)) >= 3)
        early = len(published(run))
        for _ in range(FRAMES - 4):
            writer.put()
        writer.finish()
        service.until(lambda: len(published(run)) == FRAMES and not hidden_files(run))
        done = [line["page"] for line in service.said("frame")]

    assert early == 0
    assert sorted(done) == list(range(FRAMES))
    assert [record.frame.page for record in published(run)] == list(range(FRAMES))
    masks = list(run.glob("*_mask*"))
    with tifffile.TiffFile(masks[0]) as file:
        assert len(file.pages) == FRAMES


@pytest.mark.parametrize("kind", MAKE)
def test_a_stack_goes_on_after_a_kill_where_it_was(tmp_path: Path, kind: str) -> None:
    """Killed while a stack is written, the service does the missing frames and no other."""
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    writer = MAKE[kind](run)
    for _ in range(5):
        writer.put()
    slow = {"serve.run_quiet_s": 20}
    with Service([run.parent], tmp_path / "state", settings=slow) as service:
        service.until(lambda: len(journal(run)) >= 4)
        service.process.kill()
    before = [record.written_at for record in journal(run)]
    for _ in range(FRAMES - 5):
        writer.put()
    with Service([run.parent], tmp_path / "state", settings=slow) as service:
        service.ready()
        writer.finish()
        service.until(lambda: len(published(run)) == FRAMES and not hidden_files(run))

    assert [record.written_at for record in published(run)][: len(before)] == before


@pytest.mark.parametrize("kind", MAKE)
def test_what_the_service_made_of_a_stack_is_what_process_wants(tmp_path: Path, kind: str) -> None:
    """`segbatch process` finds nothing to do in a run that the service has ended."""
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    with Service([run.parent], tmp_path / "state") as service:
        service.ready()
        writer = MAKE[kind](run)
        for _ in range(FRAMES):
            writer.put()
            time.sleep(0.05)
        writer.finish()
        service.until(lambda: run_file(run))
        service.end()
    before = next(run.glob("*_qc.jsonl")).read_bytes()
    done = segbatch("process", run, "--json")

    assert done.returncode == 0, done.stderr
    assert '"frames": 0' in done.stdout
    assert next(run.glob("*_qc.jsonl")).read_bytes() == before
