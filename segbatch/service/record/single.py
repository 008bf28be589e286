"""The results of a file that holds one frame: its QC log is there last, or not at all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from segbatch.service.record import schema
from segbatch.service.record.atomic import remove, sync_folder, whole_file, write_whole
from segbatch.service.record.names import OutputNames, remove_ours, require_ours
from segbatch.service.record.onepage import write_page
from segbatch.service.record.products import Products, with_mask
from segbatch.service.record.recorder import Keep, Written
from segbatch.service.record.schema import QcRecord
from segbatch.service.record.spool import Page


class SingleRecorder:
    """Commits one frame: old log away, products, new log.

    So no log ever vouches for a mask of another time, and a kill at any
    moment leaves a whole outcome or none.
    """

    def __init__(self, names: OutputNames) -> None:
        self.names = names

    def commit(self, page: int, record: QcRecord, products: Written) -> QcRecord:
        """Write the frame's products, then its QC log; return the record as it was written.

        Raises
        ------
        StorageError
            Something could not be written; the frame then has no outcome yet.
        """
        start = time.perf_counter()
        if products is not Keep.PRODUCTS:
            remove(self.names.qc)
            remove(self.names.qc_lines)  # of a time when the raw held more frames
            self._write(products)
        record = _with_time(with_mask(record, self.names, page), time.perf_counter() - start)
        write_whole(self.names.qc, schema.encode_for_people(record))
        sync_folder(self.names.folder)
        return record

    def _write(self, products: Products | None) -> None:
        wanted: dict[Path, tuple[Page, np.dtype[Any], bool]] = {}
        pixel_size_um = None
        if products is not None:
            wanted, pixel_size_um = products.named(self.names), products.pixel_size_um
        for path, (content, dtype, coloured) in wanted.items():
            require_ours(path)
            with whole_file(path) as handle:
                write_page(
                    handle,
                    content,
                    dtype,
                    coloured=coloured,
                    pixel_size_um=pixel_size_um,
                    ome=coloured and path.name.endswith(".ome.tif"),
                )
        for path in self.names.products():
            if path not in wanted:
                remove_ours(path)

    def finish(self, axes: tuple[str, tuple[int, ...]] | None) -> None:
        """Do nothing: the commit of the only frame was the last thing to do."""

    def close(self) -> None:
        """Do nothing: no file is kept open."""


def _with_time(record: QcRecord, writing_s: float) -> QcRecord:
    """Count the writing of the products into the time that recording took."""
    timing = record.timing_ms
    written = msgspec.structs.replace(timing, record=round(timing.record + writing_s * 1e3, 3))
    return msgspec.structs.replace(record, timing_ms=written)
