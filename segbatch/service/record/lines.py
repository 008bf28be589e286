"""QC logs of stacks, a line for each frame, that stay on the disk until a record is asked for.

A stack may have a hundred thousand frames, and a record takes 17 kB as an object; only where
each line ends is kept in memory.
"""

from __future__ import annotations

import os
import threading
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, overload

import msgspec

from segbatch.service.record import schema
from segbatch.service.record.atomic import storage_error
from segbatch.service.record.schema import QcRecord

_READ_AT_ONCE = 256  # lines


class Lines(Sequence[QcRecord]):
    """The whole records at the beginning of a file, read back whenever they are asked for.

    They are those of the file that was opened, whatever stands under its name later.

    Parameters
    ----------
    path
        Of the file.
    flags
        How to open it, as for ``os.open``.

    Raises
    ------
    OSError
        It cannot be opened or read.
    """

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self._path = path
        self._ends = array("Q", [0])
        self._guard = threading.Lock()
        self._settled: tuple[int, int] | None = None
        flags |= getattr(os, "O_BINARY", 0)  # Windows
        self._descriptor = os.open(path, flags, 0o644)
        self._closing = weakref.finalize(self, os.close, self._descriptor)
        with os.fdopen(os.dup(self._descriptor), "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n") or schema.decode(line) is None:
                    break
                self._ends.append(self._ends[-1] + len(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    @property
    def size_bytes(self) -> int:
        """Bytes of all whole lines."""
        return self._ends[-1]

    def settle_on(self, size_bytes: int, mtime_ns: int) -> None:
        """Have every record say this of its raw from here on; the file keeps what it says."""
        self._settled = size_bytes, mtime_ns

    def close(self) -> None:
        """Close the file, once; it stays on the disk."""
        with self._guard:
            self._closing()
            self._descriptor = -1  # its number may be another file's from here on

    def _read(self, first: int, end: int) -> list[QcRecord]:
        start, stop = self._ends[first], self._ends[end]
        content = b""
        try:
            with self._guard:
                os.lseek(self._descriptor, start, os.SEEK_SET)
                while part := os.read(self._descriptor, stop - start - len(content)):
                    content += part
        except OSError as error:
            raise storage_error(error, self._path) from error
        decoded = [schema.decode(line) for line in content.splitlines()]
        records = [self._told(record) for record in decoded if record is not None]
        if len(records) != end - first:
            raise storage_error(OSError("lines written before cannot be read"), self._path)
        return records

    def _told(self, record: QcRecord) -> QcRecord:
        if self._settled is None:
            return record
        size_bytes, mtime_ns = self._settled
        frame = msgspec.structs.replace(record.frame, size_bytes=size_bytes, mtime_ns=mtime_ns)
        return msgspec.structs.replace(record, frame=frame)


class Journal(Lines):
    """The lines of a stack under way; it is made where there is none.

    What follows the last whole line stays until the next is written or ``truncate`` is called.

    Raises
    ------
    StorageError
        The file cannot be opened or made.
    """

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise storage_error(error, path) from error

    def append(self, record: QcRecord) -> None:
        """Write the next record; it is whole in the file when this returns.

        Raises
        ------
        OSError
            The disk is full or gone.
        """
        line = schema.encode(record)
        with self._guard:
            os.lseek(self._descriptor, self._ends[-1], os.SEEK_SET)
            left = memoryview(line)
            while left:
                left = left[os.write(self._descriptor, left) :]
            self._ends.append(self._ends[-1] + len(line))

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` records."""
        with self._guard:
            del self._ends[count + 1 :]
            os.truncate(self._descriptor, self._ends[-1])

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        os.fsync(self._descriptor)
