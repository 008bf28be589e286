"""What the service holds: its trees, except for runs that others began before it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.service.runs import make_run
from tests.service.serving import Service, run_file
from tests.service.test_units import hold


def test_a_run_that_another_process_works_on_waits_and_the_others_do_not(tmp_path: Path) -> None:
    """Who began before the service keeps his run until he is done; then the service takes it."""
    root = tmp_path / "in"
    for name in ("held", "free"):
        make_run(root / name, 3)
        (root / name / "Pos0").mkdir()
    holder = hold(root / "held" / "Pos0")
    with Service([root], tmp_path / "state") as service:
        service.until(lambda: run_file(root / "free"))
        (trouble,) = service.until(lambda: service.said("run in trouble"))
        assert not list((root / "held").glob("*_qc.json"))
        holder.communicate()
        service.until(lambda: run_file(root / "held"))

    assert trouble["folder"] == str(root / "held")
    assert f"process {holder.pid}" in trouble["why"]


def test_a_folder_that_was_replaced_is_held_and_watched_anew(tmp_path: Path) -> None:
    """A share that is mounted again is another folder: its lock is taken, its runs are done."""
    root, other = tmp_path / "in", tmp_path / "other"
    make_run(root / "one", 3)
    make_run(other / "two", 3)
    with Service([root], tmp_path / "state") as service:
        service.until(lambda: run_file(root / "one"))
        shutil.move(root, tmp_path / "away")
        shutil.move(other, root)
        service.until(lambda: run_file(root / "two"))
        service.until((root / ".segbatch.lock").exists)
        service.end()

    assert not (root / ".segbatch.lock").exists()
