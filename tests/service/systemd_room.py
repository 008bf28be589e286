"""A real systemd for a test: PID 1 and journald in namespaces of their own.

`/etc` is a copy, `/run`, `/srv`, `/var/lib`, `/var/cache` and `/var/log` are empty, the loopback is
the room's own, all other files are this machine's. So `segbatch install-service` runs as on a
fresh machine, and the unit that it wrote runs unchanged: user, sandbox, watchdog, journal.
Nothing in the room outlives it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SYSTEMD = Path("/usr/lib/systemd/systemd")
SECONDS = 120.0
_SPACES = ["--mount", "--pid", "--uts", "--ipc", "--net"]

# A control group for the room, seen as the root by all within.
_OUTER = """
mount -t tmpfs room /run
mkdir /run/outer
mount -t cgroup2 room /run/outer
group=/run/outer/segbatch-room-$$
mkdir "$group"
status=0
unshare --mount --pid --uts --ipc --net --fork --kill-child \
    bash -euc 'echo 0 >"$1/cgroup.procs"; exec unshare --cgroup bash -euc "$2"' \
    room "$group" "$1" || status=$?
find "$group" -depth -type d -exec rmdir {} +
exit "$status"
"""

_INNER = """
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount /run/outer
mount -t sysfs -o ro sysfs /sys
mount -t cgroup2 room /sys/fs/cgroup
mkdir -p /run/systemd /run/lock /run/etc
cp -a /etc/. /run/etc
mount --bind /run/etc /etc
for folder in /srv /var/lib /var/cache /var/log /dev/shm; do mount -t tmpfs room "$folder"; done
chmod 1777 /dev/shm
mkdir /var/lib/systemd
touch /run/console
mount --bind /run/console /dev/console
rm -rf /etc/systemd/system /etc/segbatch
mkdir -p /etc/systemd/system
cd /etc/systemd/system
for name in basic exit local-fs multi-user network remote-fs room shutdown sockets sysinit; do
    printf '[Unit]\\nDefaultDependencies=no\\n' >"$name.target"
done
printf 'Requires=systemd-journald.service multi-user.target\\n' >>room.target
for name in systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do
    ln -s "/usr/lib/systemd/system/$name" .
done
exec env -i container=room PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    SYSTEMD_UNIT_PATH=/etc/systemd/system \
    /usr/lib/systemd/systemd --system --unit=room.target --log-target=journal --show-status=no
"""


def why_no_room() -> str:
    """Say why this machine cannot have a systemd of our own; empty where it can."""
    if sys.platform != "linux":
        return "systemd needs Linux"
    if os.geteuid() != 0:
        return "only root can make the namespaces for a systemd"
    missing = [name for name in ("unshare", "nsenter", "systemctl") if not shutil.which(name)]
    if missing or not SYSTEMD.exists():
        return "systemd is not installed (Debian package systemd)"
    probe = 'd=$(mktemp -d); mount -t cgroup2 probe "$d" && mkdir "$d/p$$" && rmdir "$d/p$$"'
    answer = subprocess.run(
        ["unshare", *_SPACES, "--fork", "sh", "-c", f"mount -t tmpfs probe /run; cd /run; {probe}"],
        env=os.environ | {"TMPDIR": "/run"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = answer.stderr.strip().splitlines()
    return f"no namespaces or control groups here: {said[-1]}" if answer.returncode else ""


class Room:
    """A running systemd; ``close`` ends it and all within."""

    def __init__(self) -> None:
        self._outer = subprocess.Popen(
            ["unshare", "--mount", "bash", "-euc", _OUTER, "room", _INNER],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._init = 0
        try:
            until(self._is_up, "the room's systemd is up")
        except BaseException:
            self.close()
            raise

    def _is_up(self) -> bool:
        if self._outer.poll() is not None:
            assert self._outer.stderr is not None
            raise AssertionError(f"no room: {self._outer.stderr.read()}")
        for child in _children(self._outer.pid):
            for init in _children(child):
                if Path(f"/proc/{init}/comm").read_text() == "systemd\n":
                    self._init = init
                    answer = self.run("systemctl", "is-system-running", check=False)
                    return answer.stdout.strip() in ("running", "degraded")
        return False

    def run(
        self, *command: str | Path, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the room, with a plain environment."""
        entered = ["nsenter", "-t", str(self._init), "--cgroup", *_SPACES, "--", *command]
        answer = subprocess.run(
            entered,
            input=stdin,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        told = f"{command}\n{answer.stdout}{answer.stderr}"
        assert not check or answer.returncode == 0, told
        return answer

    def write(self, path: str, text: str) -> None:
        """Write a file as the room sees it."""
        self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", path, stdin=text)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """Return what a unit and its manager said, oldest first."""
        return self.run("journalctl", "-u", unit, "--no-pager", "-o", "cat").stdout

    def outer_pid(self, pid: int) -> int:
        """Return the number that this machine gives to a process of the room."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                found = re.search(r"^NSpid:\t(\d+)\t(\d+)$", status.read_text(), re.MULTILINE)
                same = found and (status.parent / "ns/pid").readlink() == self._pid_space
            except OSError:  # it ended meanwhile
                continue
            if found and same and int(found[2]) == pid:
                return int(found[1])
        raise AssertionError(f"no process {pid} in the room")

    @property
    def _pid_space(self) -> Path:
        return Path(f"/proc/{self._init}/ns/pid").readlink()

    def close(self) -> None:
        """End the room: its PID 1 goes, and with it every process within."""
        for child in _children(self._outer.pid):
            for init in _children(child) if not self._init else [self._init]:
                os.kill(init, 9)
        try:
            self._outer.wait(30)
        finally:
            if self._outer.stderr is not None:
                self._outer.stderr.close()


def until(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Wait until ``condition`` holds.

    Raises
    ------
    AssertionError
        It does not within ``seconds``.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]
