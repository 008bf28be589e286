"""The lock of a tree with the runs of years: cheap to take, never mistaken for another."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segbatch.errors import StorageError
from segbatch.service.record.lock import LOCK_NAME, folder_lock
from tests.service.test_units import hold


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the folders that are listed from now on."""
    folders: list[str] = []
    scandir: Callable[..., Any] = os.scandir

    def noting(folder: Any) -> Any:
        folders.append(os.fspath(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", noting)
    return folders


def test_a_lock_over_many_runs_lists_none_of_them(tmp_path: Path, listed: list[str]) -> None:
    """What lies below is listed only when work is to begin there, and then only once."""
    for number in range(50):
        (tmp_path / f"run{number}" / "Pos0").mkdir(parents=True)
    with folder_lock(tmp_path, below=False) as lock:
        assert listed == []
        for _ in range(3):
            lock.require_free(tmp_path / "run7", deep=True)
        assert listed == [str(tmp_path / "run7"), str(tmp_path / "run7" / "Pos0")]
        lock.require_free(tmp_path / "run8", deep=False)
        lock.require_free(tmp_path / "not" / "there", deep=True)
        assert not [folder for folder in listed if "run8" in folder]


def test_who_began_below_before_a_lock_was_taken_keeps_his_folder(tmp_path: Path) -> None:
    """His run is refused, as are those inside it and around it; runs beside it are not."""
    held = tmp_path / "run" / "day1"
    for folder in (held / "Pos0", tmp_path / "run" / "day2", tmp_path / "other"):
        folder.mkdir(parents=True)
    holder = hold(held)
    with folder_lock(tmp_path, below=False) as lock:
        for folder, deep in ((tmp_path / "run", True), (held, False), (held / "Pos0", True)):
            with pytest.raises(StorageError, match=f"process {holder.pid}"):
                lock.require_free(folder, deep=deep)
        for folder in (tmp_path / "other", tmp_path / "run" / "day2"):
            lock.require_free(folder, deep=True)
        lock.require_free(tmp_path / "run", deep=False)
        holder.communicate()
        lock.require_free(tmp_path / "run", deep=True)
        with pytest.raises(StorageError, match="being processed"), folder_lock(held):
            pass


def test_a_lock_knows_when_another_folder_stands_in_its_place(tmp_path: Path) -> None:
    """A share that was mounted anew is not held; one that is only away still is."""
    root, away = tmp_path / "share", tmp_path / "away"
    root.mkdir()
    with folder_lock(root) as lock:
        assert lock.stands
        root.rename(away)
        assert lock.stands
        root.mkdir()
        assert not lock.stands
        root.rmdir()
        away.rename(root)
        assert lock.stands
        (root / LOCK_NAME).unlink()
        assert not lock.stands


def test_a_lock_that_was_lost_takes_none_from_its_next_holder(tmp_path: Path) -> None:
    """Who holds the folder that stands there now goes on holding it when the old lock ends."""
    root = tmp_path / "share"
    root.mkdir()
    with folder_lock(root) as lock:
        root.rename(tmp_path / "away")
        root.mkdir()
        holder = hold(root)
        assert not lock.stands
    assert (root / LOCK_NAME).exists()
    with pytest.raises(StorageError, match=f"process {holder.pid}"), folder_lock(root):
        pass
    holder.communicate()
