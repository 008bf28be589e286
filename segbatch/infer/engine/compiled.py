"""Graphs that OpenVINO compiled before, kept in the user's cache folder.

A graph holds for one network, shape, number of streams and threads, precision, version of
OpenVINO and processor: all of it is in the file's name. The file begins with the hash of what
follows, because a library that reads half a graph may end the process. OpenVINO's own cache
(``CACHE_DIR``) writes in place, where another process may be reading.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

from segbatch.infer.engine.cache import cache_folder, replace
from segbatch.infer.engine.machine import processor
from segbatch.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

# Graphs kept: a few shapes of a few models; the least recently made go first.
MOST_KEPT = 16
log = get_logger(__name__)


def file_for(*key: object) -> Path:
    """Return where the graph of a key is kept, whether it is there or not."""
    text = json.dumps([*map(str, key), processor()])
    return cache_folder() / "openvino" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.graph"


def recall_graph(core: Any, file: Path, options: dict[str, Any]) -> Any:
    """Return the compiled graph of a file, None where there is none that is whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    stated, graph = content[:32], content[32:]
    if hashlib.sha256(graph).digest() != stated:
        log.warning("a compiled graph was damaged and is made again", file=str(file))
        return None
    try:
        return core.import_model(io.BytesIO(graph), "CPU", options)
    except RuntimeError as error:
        log.warning("a compiled graph is made again", file=str(file), why=str(error).split("\n")[0])
        return None


def keep_graph(compiled: Any, file: Path) -> None:
    """Keep a compiled graph where the folder can be written, and drop the oldest beyond a few."""
    held = io.BytesIO()
    try:
        compiled.export_model(held)
        graph = held.getvalue()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace(file, hashlib.sha256(graph).digest() + graph)
        kept = sorted(file.parent.glob("*.graph"), key=lambda each: each.stat().st_mtime_ns)
        for old in kept[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        log.debug("compiled graph not kept", file=str(file), why=str(error))
