"""The process that reads a network from elsewhere: its limits, what it says, and its end.

Its input is a pipe that nobody writes to: where that ends, nobody waits for it any more, and it
ends, too. What it logs is a line of JSON each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from segbatch.errors import ModelError, StorageError, UsageError
from segbatch.infer.engine.network.adopted import unwritten
from segbatch.log import get_logger

if TYPE_CHECKING:
    from typing import Any

TIMEOUT_S = 900.0
MEMORY_GIB = 16.0
log = get_logger(__name__)


def read_apart(source: Path, folder: Path, arch: str) -> Path:
    """Run the learning room's command and return the manifest that it wrote.

    Parameters
    ----------
    source
        The network.
    folder
        Exists. It gets the model, in a folder ``model`` of its own, and all temporary files.
    arch
        Architecture of weights, or empty.

    Raises
    ------
    ModelError
        It was refused, took too long or too much memory, or ended its process.
    UsageError
        What was asked for cannot be done.
    StorageError
        The model cannot be written.
    """
    temporary = folder / "tmp"
    temporary.mkdir()
    # No modules of the current folder.
    command = [sys.executable, "-P", "-m", "segbatch.learn.intake"]
    command += [str(source.absolute()), str(folder / "model"), "--ends-with-input"]
    command += ["--memory-gib", str(MEMORY_GIB), *(["--arch", arch] if arch else [])]
    try:
        done = _run(command, temporary, source)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"model {source}: not read within {TIMEOUT_S:.0f} s",
            "a network that is read sooner",
            "export it as ONNX where it was trained",
        ) from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise ModelError(
            f"model {source}: the process that read it ended: "
            f"{done.stderr[:300] or f'exit code {done.returncode}'}",
            "a network that can be read",
            "export it as ONNX where it was trained, and give that file",
        ) from None
    if done.returncode == 0:
        return Path(answer["manifest"])
    if done.returncode == StorageError.exit_code:
        raise unwritten(str(answer["got"]).rpartition(": ")[2])
    kind = UsageError if done.returncode == UsageError.exit_code else ModelError
    raise kind(answer["got"], answer["wanted"], answer["remedy"])


def _run(command: list[str], temporary: Path, source: Path) -> subprocess.CompletedProcess[str]:
    """Run the command; of its standard error its last line is returned, without what it logs."""
    waits, open_here = os.pipe()
    heard, says = os.pipe()
    last: list[str] = []
    listener = threading.Thread(target=_listen, args=(heard, source, last), daemon=True)
    listener.start()
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command,
            stdin=waits,
            stdout=subprocess.PIPE,
            stderr=says,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            env={
                # Its threads would wait by spinning, beside whatever else computes here.
                "OMP_WAIT_POLICY": "PASSIVE",
                **os.environ,
                # No temporary files that outlive an ended process.
                **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
            },
        )
    finally:
        for end in (waits, open_here, says):
            os.close(end)
        listener.join()
    done.stderr = "".join(last)
    return done


def _listen(heard: int, source: Path, last: list[str]) -> None:
    """Log what a process logs, and keep the last line of all else that it says in ``last``."""
    with os.fdopen(heard, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            event = _event(line)
            if event:
                log.info(event, model=str(source))
            elif line.strip():
                last[:] = [line.strip()]


def _event(line: str) -> str:
    """Return what a line of JSON logs, empty for any other line."""
    try:
        told: Any = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return str(told.get("event", "")) if isinstance(told, dict) else ""
