"""What a library learnt is kept for this user, this version and this GPU alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from segbatch.infer.engine.tensorrt.caches import cache_file, read_cache, write_cache

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep caches in this test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_what_is_kept_comes_back() -> None:
    """What was kept is read back, for the same keys only."""
    write_cache(cache_file("timing", "10.16", "RTX 4070"), b"learnt")

    assert read_cache(cache_file("timing", "10.16", "RTX 4070")) == b"learnt"
    assert read_cache(cache_file("timing", "10.16", "RTX 4060")) == b""
    assert read_cache(cache_file("timing", "10.16RTX", " 4070")) == b""
    assert read_cache(cache_file("runtime", "10.16", "RTX 4070")) == b""


def test_the_folder_is_the_users_alone() -> None:
    """Folder and files can be read and written by their user alone."""
    file = cache_file("runtime", "1.7")
    write_cache(file, b"learnt")

    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("whose", ["file", "folder"])
def test_what_others_may_write_is_not_read(whose: str) -> None:
    """A cache that others could have written is not given to the library."""
    file = cache_file("runtime", "1.7")
    write_cache(file, b"learnt")
    (file if whose == "file" else file.parent).chmod(0o777)

    assert read_cache(file) == b""


def test_a_cache_that_cannot_be_kept_costs_nothing(cache: Path) -> None:
    """A cache folder that cannot be made is no error."""
    (cache / "segbatch").write_bytes(b"")
    file = cache_file("runtime", "1.7")

    write_cache(file, b"learnt")

    assert read_cache(file) == b""
