"""What a segmented frame leaves besides its record: pages ready to be written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from segbatch.service.record.masks import compress
from segbatch.service.record.names import OutputNames, told
from segbatch.service.record.schema import QcRecord
from segbatch.service.record.spool import Page

MASK_DTYPE = np.dtype(np.uint8)
PROBABILITY_DTYPE = np.dtype(np.float32)
LABEL_DTYPE = np.dtype(np.uint32)


@dataclass(frozen=True, slots=True)
class Products:
    """Compressed pages of one frame.

    ``mask`` from uint8 (Y, X), ``probabilities`` from float32 (Y, X) or
    (K, Y, X), ``labels`` from uint32 (Y, X).
    """

    mask: Page
    probabilities: Page | None
    labels: Page | None
    pixel_size_um: float | None

    def named(self, names: OutputNames) -> dict[Path, tuple[Page, np.dtype[Any], bool]]:
        """Return file, page, dtype and whether it is shown by the palette, of each product."""
        found: dict[Path, tuple[Page, np.dtype[Any], bool]] = {
            names.mask: (self.mask, MASK_DTYPE, True)
        }
        if self.probabilities is not None:
            found[names.probabilities] = (self.probabilities, PROBABILITY_DTYPE, False)
        if self.labels is not None:
            found[names.labels] = (self.labels, LABEL_DTYPE, False)
        return found


def page_of(pixels: NDArray[Any]) -> Page:
    """Compress (Y, X) or (K, Y, X) pixels into a page."""
    return Page(pixels.shape, compress(pixels))


def with_mask(record: QcRecord, names: OutputNames, page: int) -> QcRecord:
    """Return ``record`` with the mask's file and page filled in, where it has a mask."""
    if record.mask is None:
        return record
    mask = msgspec.structs.replace(record.mask, file=told(names.mask), page=page)
    return msgspec.structs.replace(record, mask=mask)
