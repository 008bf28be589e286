"""What a pickle is and what it calls, told without unpickling it."""

from __future__ import annotations

import pickletools
import re
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_BYTES = 1 << 30
MAGIC = b"\x8a\x0al\xfc\x9cF\xf9"  # of torch.save before it wrote zip archives
# What torch's own pickles of weights are made of, and its reader lets through.
PLAIN = re.compile(
    r"collections\.OrderedDict|torch\.(\w*Storage|Size|device|\w*int\d+|b?float\d+|half|double"
    r"|_utils\._rebuild_(tensor_v2|parameter))",
    re.ASCII,
)
TEXT = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")


def told_of(file: Path) -> tuple[str, str]:
    """Return what a file of ``torch.save`` or ``pickle`` is, and the first name that it calls.

    The name is that of a function or class which weights do not need; empty where there is none.
    """
    form, content = _content(file)
    newest, called = 0, ""
    while content and not called:
        look = _Look()
        try:
            for opcode, argument, place in pickletools.genops(content):
                look.at(opcode.name, argument)
                end = (place or 0) + 1
        except (ValueError, IndexError, OverflowError):
            end = len(content)
        newest, called = max(newest, look.protocol), look.called
        content = content[end:]
    return f"{form} of protocol {newest}" if newest > 3 else form, called[:100]


class _Look:
    """Follows the texts of one pickle, of which names that are called may be made."""

    def __init__(self) -> None:
        self.protocol, self.called = 0, ""
        self._texts: list[str] = []
        self._memo: dict[int, str | None] = {}
        self._last: str | None = None

    def at(self, opcode: str, argument: Any) -> None:
        """Note one operation."""
        if opcode == "PROTO":
            self.protocol = int(argument)
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = self._last
        elif opcode.endswith("PUT"):
            self._memo[int(argument)] = self._last
        elif opcode in TEXT or opcode.endswith("GET"):
            text = str(argument) if opcode in TEXT else self._memo.get(int(argument))
            self._texts += [text] if text is not None else []
            self._last = text
        else:
            if opcode in ("GLOBAL", "STACK_GLOBAL", "INST"):
                parts = str(argument).split(" ") if argument else self._texts[-2:]
                name = ".".join(parts)
                self.called = self.called or ("" if PLAIN.fullmatch(name) else name)
            self._last = None


def _content(file: Path) -> tuple[str, bytes]:
    with file.open("rb") as stream:
        head = stream.read(64)
        stream.seek(0)
        if not head.startswith(b"PK"):
            form = "a file of an old torch.save" if MAGIC in head else "a plain pickle"
            return form, stream.read(LARGEST_BYTES)
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith("data.pkl") and archive.getinfo(name).file_size < LARGEST_BYTES:
                return "a file of torch.save", archive.read(name)
    return "a file of torch.save", b""
