"""Markdown as the tests see it: fenced blocks, links, and how each kind of block is checked.

A fence names its language. ``bash`` runs as one script; ``console`` runs the lines that begin
with ``$ `` and compares the answer, ``...`` standing for anything; ``python`` runs; ``toml`` is
read as a settings file; ``json`` is read, and checked against the schema where it is a QC record;
``text`` is only for reading. The blocks of one document share a folder and run in order.
A block that cannot run has this on the line above, and says why::

    <!-- not run: needs a camera -->
"""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jsonschema

from segbatch import settings
from tests.house.places import COMMAND

if TYPE_CHECKING:
    from pathlib import Path

FENCE = re.compile(r"^( *)(```+|~~~+)\s*([\w-]*)")
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*?) -->")
LINK = re.compile(r"(?<!\\)\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.*?) *#*$", re.MULTILINE)
SECONDS = 240


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its text, the line it begins on, why it is not run."""

    language: str
    text: str
    line: int
    not_run: str | None


def blocks(document: str) -> list[Block]:
    """Return the fenced blocks of a Markdown text."""
    found: list[Block] = []
    opening: re.Match[str] | None = None
    above, start, inside = "", 0, list[str]()
    for number, line in enumerate(document.splitlines(), 1):
        if opening is None:
            opening, start, inside = FENCE.match(line), number, []
            if opening is None and line.strip():
                above = line
        elif line.strip() == opening[2]:
            reason = NOT_RUN.search(above)
            text = "".join(f"{item.removeprefix(opening[1])}\n" for item in inside)
            found.append(Block(opening[3], text, start, reason["reason"] if reason else None))
            opening, above = None, ""
        else:
            inside.append(line)
    return found


def prose(document: str) -> str:
    """Return a Markdown text without its fenced blocks and code spans."""
    kept, opening = [], None
    for line in document.splitlines():
        fence = FENCE.match(line)
        if opening is None and fence:
            opening = fence[2]
        elif opening is not None:
            opening = None if line.strip() == opening else opening
        else:
            kept.append(re.sub(r"`[^`]*`", "", line))
    return "\n".join(kept)


def links(document: str) -> list[str]:
    """Return where the links and images of a Markdown text lead, web addresses left out."""
    targets = [first or second for first, second in LINK.findall(prose(document))]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(document: str) -> set[str]:
    """Return the names that a Markdown text's headings answer to, as forges make them."""
    names = [re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(document)]
    return {name.replace(" ", "-") for name in names}


def check(block: Block, folder: Path) -> None:
    """Run or read ``block`` in ``folder`` as its language asks.

    Raises
    ------
    AssertionError
        The block fails, answers otherwise than written, or is of no known language.
    """
    if block.language == "bash":
        _succeed(["bash", "-euo", "pipefail", "-c", block.text], folder)
    elif block.language == "console":
        _compare(block.text, folder)
    elif block.language == "python":
        _succeed([sys.executable, "-c", block.text], folder)
    elif block.language == "toml":
        file = folder / "block.toml"
        file.write_text(block.text, encoding="utf-8")
        settings.load(file)
    elif block.language == "json":
        record = json.loads(block.text)
        if isinstance(record, dict) and record.get("schema") == "segbatch.qc/1":
            schema = json.loads(_succeed([COMMAND, "schema"], folder))
            jsonschema.validate(record, schema)
    else:
        assert block.language == "text", "wanted: bash, console, python, toml, json or text"


def _succeed(command: list[str | Path], folder: Path) -> str:
    """Run ``command`` and return what it printed on stdout."""
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    answer = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path, "COLUMNS": "100", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert answer.returncode == 0, f"exit {answer.returncode}\n{answer.stdout}{answer.stderr}"
    return answer.stdout


def _compare(transcript: str, folder: Path) -> None:
    """Run each ``$`` line of ``transcript`` and compare stdout with the lines that follow it."""
    lenient = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for step in re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]:
        command, _, wanted = step.partition("\n")
        got = _succeed(["bash", "-euo", "pipefail", "-c", command], folder)
        if wanted.strip():
            same = doctest.OutputChecker().check_output(wanted, got, lenient)
            assert same, f"$ {command}\nwanted:\n{wanted}\ngot:\n{got}"
