"""The QC lines of a stack under way, in a hidden file: what is written there is not kept in memory.

A stack may take days and have a hundred thousand frames; only where each line ends is kept.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import msgspec

from segbatch.service.record import schema
from segbatch.service.record.atomic import append_whole, storage_error
from segbatch.service.record.schema import QcRecord

_READ_AT_ONCE = 256  # lines


class Journal(Sequence[QcRecord]):
    """The records of a stack's first frames, read back from the file whenever they are asked for.

    Opening it finds the whole lines; what follows the last one stays until the next is written
    or ``truncate`` is called.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends = array("Q", [0])
        self._guard = threading.Lock()
        self._settled: tuple[int, int] | None = None
        try:
            self._handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", 0)
            with path.open("rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n") or schema.decode(line) is None:
                        break
                    self._ends.append(self._ends[-1] + len(line))
        except OSError as error:
            raise storage_error(error, path) from error

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> QcRecord: ...

    @overload
    def __getitem__(self, at: slice) -> list[QcRecord]: ...

    def __getitem__(self, at: int | slice) -> QcRecord | list[QcRecord]:
        """Read records back.

        Raises
        ------
        StorageError
            The file cannot be read any more.
        """
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        return self._read(number, number + 1)[0]

    def __iter__(self) -> Iterator[QcRecord]:
        count = len(self)
        for first in range(0, count, _READ_AT_ONCE):
            yield from self._read(first, min(first + _READ_AT_ONCE, count))

    def append(self, record: QcRecord) -> None:
        """Write the next record; it is whole in the file when this returns.

        Raises
        ------
        OSError
            The disk is full or gone.
        """
        line = schema.encode(record)
        with self._guard:
            self._handle.seek(self._ends[-1])
            append_whole(self._handle, line)
            self._ends.append(self._ends[-1] + len(line))

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` records."""
        with self._guard:
            del self._ends[count + 1 :]
            self._handle.truncate(self._ends[-1])

    def settle_on(self, size_bytes: int, mtime_ns: int) -> None:
        """Have every record say this of its raw from here on; the file keeps what it says."""
        self._settled = size_bytes, mtime_ns

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file; it stays."""
        self._handle.close()

    def _read(self, first: int, end: int) -> list[QcRecord]:
        start, stop = self._ends[first], self._ends[end]
        content = b""
        try:
            with self._guard:
                self._handle.seek(start)
                while len(content) < stop - start:
                    part = self._handle.read(stop - start - len(content))
                    if not part:
                        break
                    content += part
        except OSError as error:
            raise storage_error(error, self._path) from error
        records = [schema.decode(line) for line in content.splitlines()]
        found = [record for record in records if record is not None]
        if len(found) != end - first:
            gone = OSError("lines written before cannot be read")
            raise storage_error(gone, self._path)
        return [self._told(record) for record in found]

    def _told(self, record: QcRecord) -> QcRecord:
        if self._settled is None:
            return record
        size_bytes, mtime_ns = self._settled
        frame = msgspec.structs.replace(record.frame, size_bytes=size_bytes, mtime_ns=mtime_ns)
        return msgspec.structs.replace(record, frame=frame)
