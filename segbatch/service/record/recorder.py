"""One way to record a frame, whether its file holds one frame or many."""

from __future__ import annotations

import enum
from typing import Literal, Protocol

from segbatch.service.record.names import OutputNames
from segbatch.service.record.products import Products
from segbatch.service.record.schema import QcRecord


class Keep(enum.Enum):
    """What stands on disk for a frame stays; only its record is written anew."""

    PRODUCTS = enum.auto()


Written = Products | Literal[Keep.PRODUCTS] | None


class Recorder(Protocol):
    """Takes the outcomes of one raw file's frames; called from several threads."""

    names: OutputNames

    def commit(self, page: int, record: QcRecord, products: Written) -> QcRecord:
        """Record one frame; products are None where it has no mask.

        Returns the record as it is written: with its mask's file and page.
        """

    def finish(self, axes: tuple[str, tuple[int, ...]] | None) -> None:
        """Make the results whole; called once, when every frame of the file was committed."""

    def close(self) -> None:
        """Let go of open files; called always, last. What was committed stays."""
