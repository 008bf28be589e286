"""How changes are noticed depends on the file system that a folder lies on."""

from __future__ import annotations

from pathlib import Path

import pytest

from segbatch.acquire.folder.mounts import mount_of

TABLE = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /mnt/scope rw shared:2 master:3 - cifs //pc/data rw
31 30 0:41 / /mnt/scope/fast rw - xfs /dev/sdb rw
32 27 0:42 / /mnt/with\040blank rw - nfs4 server:/x rw
33 27 0:43 / /mnt/twice rw - ext4 /dev/sdc rw
34 33 0:44 / /mnt/twice rw - fuse.sshfs me@there: rw
35 27 0:45 / /mnt/nine rw - 9p share rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "file_system", "observer"),
    [
        ("/data/run", "ext4", "inotify"),
        ("/mnt/scope/run", "cifs", "polling"),
        ("/mnt/scopes", "ext4", "inotify"),
        ("/mnt/scope/fast/run", "xfs", "inotify"),
        ("/mnt/with blank/run", "nfs4", "polling"),
        ("/mnt/twice", "fuse.sshfs", "polling"),
        ("/mnt/nine/x", "9p", "polling"),
    ],
)
def test_the_deepest_mount_decides(
    tmp_path: Path, path: str, file_system: str, observer: str
) -> None:
    """Of mounts over each other the last counts; escaped names are understood."""
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    found = mount_of(Path(path), table)
    assert found is not None
    assert (found.file_system, found.observer) == (file_system, observer)


def test_a_platform_without_a_table_of_mounts_has_no_mount(tmp_path: Path) -> None:
    """Windows and macOS have their own ways of telling."""
    assert mount_of(tmp_path, tmp_path / "nothing") is None


def test_this_machines_own_folders_have_a_mount(tmp_path: Path) -> None:
    """The real table is read, also for a path that does not exist yet."""
    found = mount_of(tmp_path / "later")
    assert found is None or found.point.startswith("/")
