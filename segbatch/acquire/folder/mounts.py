"""Which file system a folder lies on, and whether that one tells of changes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Observer = Literal["inotify", "polling", "native"]

# A change that another machine makes here raises no event on this one.
_SHARED = frozenset(
    (
        *("9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "glusterfs"),
        *("gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "prl_fs", "pvfs2", "smb3", "smbfs"),
        *("sshfs", "vboxsf", "virtiofs", "vmhgfs"),
    )
)
_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a path is mounted: the mount point, and the file system's name (``ext4``)."""

    point: str
    file_system: str

    @property
    def observer(self) -> Observer:
        """How changes are noticed there."""
        shared = self.file_system in _SHARED or self.file_system.startswith("fuse")
        return "polling" if shared else "inotify"


def mount_of(path: Path, table: Path = _MOUNTS) -> Mount | None:
    """Find the mount that ``path`` lies on; the path need not exist.

    Parameters
    ----------
    table
        In the form of Linux's ``/proc/self/mountinfo`` (proc(5)).

    Returns
    -------
    None where there is no such table (Windows, macOS).
    """
    try:
        lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = path.resolve()
    best: Mount | None = None
    for line in lines:
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 6:
            continue
        point = _unescaped(fields[4])
        # What was mounted later on the same point lies over what was there.
        if place.is_relative_to(point) and (best is None or len(point) >= len(best.point)):
            best = Mount(point, _unescaped(after.split(" ")[0]))
    return best


def _unescaped(text: str) -> str:
    """Undo the octal escapes of blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
