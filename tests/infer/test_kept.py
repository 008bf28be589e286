"""What a library made is kept for this user, this version and this machine alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from segbatch.infer.engine import kept
from segbatch.infer.engine.kept import kept_file, read_kept, write_kept

if TYPE_CHECKING:
    from pathlib import Path

needs_posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)
NOBODY = 65534


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep caches in this test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_what_is_kept_comes_back() -> None:
    """What was kept is read back, for the same keys only."""
    write_kept(kept_file("tensorrt", "timing", "10.16", "RTX 4070"), b"learnt")

    assert read_kept(kept_file("tensorrt", "timing", "10.16", "RTX 4070")) == b"learnt"
    assert read_kept(kept_file("tensorrt", "timing", "10.16", "RTX 4060")) == b""
    assert read_kept(kept_file("tensorrt", "timing", "10.16RTX", " 4070")) == b""
    assert read_kept(kept_file("tensorrt", "runtime", "10.16", "RTX 4070")) == b""


@needs_posix
def test_the_folder_is_the_users_alone() -> None:
    """Folder and files can be read and written by their user alone."""
    file = kept_file("tensorrt", "runtime", "1.7")
    file.parent.mkdir(parents=True, mode=0o777)
    write_kept(file, b"learnt")

    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


@needs_posix
@pytest.mark.parametrize("whose", ["file", "folder"])
def test_what_others_may_write_is_not_read(whose: str) -> None:
    """What others could have written is not given to a library, and the log says why."""
    file = kept_file("tensorrt", "runtime", "1.7")
    write_kept(file, b"learnt")
    (file if whose == "file" else file.parent).chmod(0o777)
    with capture_logs() as lines:
        assert read_kept(file) == b""

    assert "others may write" in lines[0]["why"]


@needs_root
@pytest.mark.parametrize("whose", ["file", "folder"])
def test_what_is_another_users_is_not_read(whose: str) -> None:
    """What another user owns is not given to a library, whatever its mode."""
    file = kept_file("openvino", "graph", "1.7")
    write_kept(file, b"learnt")
    os.chown(file if whose == "file" else file.parent, NOBODY, NOBODY)

    assert read_kept(file) == b""


@needs_root
def test_nothing_is_kept_in_another_users_folder() -> None:
    """A folder of another user's is neither written to nor changed."""
    file = kept_file("openvino", "graph", "1.7")
    file.parent.mkdir(parents=True, mode=0o755)
    os.chown(file.parent, NOBODY, NOBODY)
    write_kept(file, b"learnt")

    assert list(file.parent.iterdir()) == []
    assert file.parent.stat().st_mode & 0o777 == 0o755


@needs_posix
@pytest.mark.parametrize("what", ["file", "folder"])
def test_nothing_is_read_through_a_link(what: str, tmp_path: Path) -> None:
    """A link in the place of the file or its folder is not followed."""
    file = kept_file("tensorrt", "runtime", "1.7")
    write_kept(file, b"learnt")
    linked = file if what == "file" else file.parent
    moved = linked.rename(tmp_path / linked.name)
    linked.symlink_to(moved)

    assert read_kept(file) == b""


@needs_posix
def test_nothing_is_written_through_a_linked_folder(tmp_path: Path) -> None:
    """A link in the place of the folder keeps its target as it is."""
    file = kept_file("tensorrt", "runtime", "1.7")
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    file.parent.parent.mkdir(parents=True)
    file.parent.symlink_to(tmp_path / "elsewhere")
    write_kept(file, b"learnt")

    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o755


@needs_posix
def test_a_pipe_is_not_waited_for() -> None:
    """A pipe in the file's place is nothing that was kept."""
    file = kept_file("tensorrt", "runtime", "1.7")
    file.parent.mkdir(parents=True, mode=0o700)
    os.mkfifo(file)

    assert read_kept(file) == b""


def test_a_file_under_another_name_is_not_read() -> None:
    """What was kept for one network is not read for another, though it was renamed to it."""
    one, other = (kept_file("openvino", "graph", name) for name in ("one", "other"))
    write_kept(one, b"learnt")
    one.rename(other)

    assert read_kept(other) == b""


@pytest.mark.parametrize("left", [0, 10, 35])
def test_a_file_that_was_cut_off_is_not_read(left: int) -> None:
    """What is not whole is never handed to a library, and the log says so."""
    file = kept_file("openvino", "graph", "1.7")
    write_kept(file, b"learnt")
    os.truncate(file, left)
    with capture_logs() as lines:
        assert read_kept(file) == b""

    assert "damaged" in lines[0]["event"]


def test_no_more_bytes_are_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not used for longest goes when a library's folder would grow past its bytes."""
    monkeypatch.setattr(kept, "MOST_BYTES", 400)
    files = [kept_file("openvino", "graph", number) for number in range(4)]
    for number, file in enumerate(files[:3]):
        write_kept(file, bytes(100))
        os.utime(file, (1000 + number, 1000 + number))
    assert read_kept(files[0])  # which makes it the one that was used last
    write_kept(files[3], bytes(100))

    assert [file.exists() for file in files] == [True, False, True, True]


def test_what_is_larger_than_all_that_is_allowed_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thing larger than a folder may be drops nothing of what is there."""
    monkeypatch.setattr(kept, "MOST_BYTES", 200)
    small, large = (kept_file("openvino", "graph", name) for name in ("small", "large"))
    write_kept(small, b"learnt")
    write_kept(large, bytes(1000))

    assert read_kept(small) == b"learnt"
    assert not large.exists()


def test_files_do_not_pile_up() -> None:
    """However many things come along, a folder keeps a few, and no writer's leftovers."""
    files = [kept_file("openvino", "graph", number) for number in range(kept.MOST_FILES + 4)]
    write_kept(files[0], b"learnt")
    left = files[0].with_name(f".{files[0].name}.left")
    left.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    for file in files[1:]:
        write_kept(file, b"learnt")

    assert len(list(files[0].parent.iterdir())) == kept.MOST_FILES
    assert not left.exists()


def test_a_cache_that_cannot_be_kept_costs_nothing(cache: Path) -> None:
    """A cache folder that cannot be made is no error."""
    (cache / "segbatch").write_bytes(b"")
    file = kept_file("tensorrt", "runtime", "1.7")

    write_kept(file, b"learnt")

    assert read_kept(file) == b""
