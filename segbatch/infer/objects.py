"""Connected objects of a mask, counted in strips so that memory stays small.

Two pixels belong to one object when they carry the same class and touch by a
side or a corner. OpenCV labels one strip at a time, each beginning with the
last row of the strip before: a pixel of that row has an object above and one
below, which are then the same. Objects that do not reach a strip's last row
are finished and leave only their area behind, so that what is kept is bounded
by the frame's width and the number of different areas, not by its objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRIP_PX = 1 << 22


@dataclass(slots=True)
class Areas:
    """How often each area occurs among the objects counted so far, pixels."""

    values: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def objects(self) -> int:
        """Objects counted."""
        return int(self.counts.sum())

    @property
    def median(self) -> float | None:
        """Median area, pixels; None without objects."""
        if not len(self.counts):
            return None
        upto = np.cumsum(self.counts)
        middle = [(upto[-1] - 1) // 2, upto[-1] // 2]
        return float(self.values[np.searchsorted(upto, middle, side="right")].mean())

    def add(self, areas: NDArray[np.int64]) -> None:
        """Count objects of the given areas."""
        values, counts = np.unique(areas, return_counts=True)
        self.values, where = np.unique(np.concatenate([self.values, values]), return_inverse=True)
        both = np.concatenate([self.counts, counts])
        self.counts = np.bincount(where, both, len(self.values)).astype(np.int64)


def areas_of(mask: NDArray[np.uint8], classes: int = 1, strip_px: int = STRIP_PX) -> Areas:
    """Count the objects of every class and their areas.

    Parameters
    ----------
    mask
        (Y, X) class indices, 0 background; with one class, 0 and 1.
    classes
        Classes besides background.
    strip_px
        Pixels labelled at once, about; memory is some six bytes for each.
    """
    rows = max(1, strip_px // mask.shape[1])
    areas = Areas()
    for index in range(1, classes + 1):
        _count(mask, index if classes > 1 else None, rows, areas)
    return areas


def _count(mask: NDArray[np.uint8], index: int | None, rows: int, areas: Areas) -> None:
    above = np.zeros(mask.shape[1], np.int32)  # the open object of each pixel of the last row
    open_area = np.zeros(1, np.int64)
    for top in range(0, len(mask), rows):
        shared = 1 if top else 0
        strip = mask[top - shared : top + rows]
        if index is not None:
            strip = (strip == index).view(np.uint8)
        found, labels = cv2.connectedComponents(strip, connectivity=8, ltype=cv2.CV_32S)
        fresh = labels[shared:][strip[shared:].view(np.bool_)]
        area = np.bincount(fresh, minlength=found).astype(np.int64)
        if shared:
            touching = np.unique(np.stack([above, labels[0]], axis=1)[above > 0], axis=0)
            area, root = _join(area, open_area, touching)
            last = root[labels[-1]]
        else:
            last = labels[-1]
        if top + rows >= len(mask):
            areas.add(area[area > 0])
            return
        still_open = np.unique(last)
        still_open = still_open[still_open > 0]
        open_area = np.concatenate([[0], area[still_open]])
        area[still_open] = 0
        areas.add(area[area > 0])
        place = np.zeros(found, np.int32)
        place[still_open] = np.arange(1, len(still_open) + 1)
        above = place[last]


def _join(
    area: NDArray[np.int64], open_area: NDArray[np.int64], touching: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Give the open objects' areas to the labels they go on as, joined where one has several.

    ``touching`` holds the different pairs (open object, label), sorted.
    Returns the areas, gathered at one label of each object, and that label for
    every label.
    """
    root = list(range(len(area)))

    def find(label: int) -> int:
        while root[label] != label:
            root[label] = root[root[label]]
            label = root[label]
        return label

    old, new = touching[:, 0], touching[:, 1]
    again = np.flatnonzero(old[1:] == old[:-1]) + 1
    for here, before in zip(new[again].tolist(), new[again - 1].tolist(), strict=True):
        root[find(here)] = find(before)
    first = np.ones(len(old), np.bool_)
    first[again] = False
    np.add.at(area, new[first], open_area[old[first]])
    roots = np.array([find(label) for label in range(len(area))], np.int32)
    return np.bincount(roots, area, len(area)).astype(np.int64), roots


def labels_of(mask: NDArray[np.uint8], classes: int = 1) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Return the objects numbered: 0 background, then 1.. class by class, in reading order.

    Reading order is that of each object's first pixel. Needs 8 bytes a pixel
    while it runs. Returns (Y, X) uint16, uint32 where there are more objects.
    """
    numbered = np.zeros(mask.shape, np.uint32)
    base = 0
    for index in range(1, classes + 1):
        member = mask == index
        found, labels = cv2.connectedComponents(
            member.view(np.uint8), connectivity=8, ltype=cv2.CV_32S
        )
        inside = labels[member]
        first = np.zeros(found, np.int64)
        first[inside[::-1]] = np.arange(len(inside))[::-1]
        rank = np.zeros(found, np.uint32)
        rank[1 + np.argsort(first[1:])] = np.arange(base + 1, base + found, dtype=np.uint32)
        numbered[member] = rank[inside]
        base += found - 1
    return numbered.astype(np.uint16) if base < 1 << 16 else numbered
