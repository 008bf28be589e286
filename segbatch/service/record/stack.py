"""The results of a stack: kept page by page while it runs, published whole at its end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from segbatch.service.record import schema
from segbatch.service.record.atomic import (
    remove,
    storage_error,
    sync_folder,
    whole_file,
)
from segbatch.service.record.lines import Journal, Lines
from segbatch.service.record.masks import compress, write_pages
from segbatch.service.record.names import OutputNames, remove_ours, require_ours
from segbatch.service.record.products import (
    LABEL_DTYPE,
    MASK_DTYPE,
    PROBABILITY_DTYPE,
    Products,
    with_mask,
)
from segbatch.service.record.recorder import Keep, Written
from segbatch.service.record.schema import QcRecord
from segbatch.service.record.spool import Page, PageSpool

JOURNAL_SUFFIX = ".segbatch-journal"
SPOOL_SUFFIX = ".segbatch-spool"
SYNC_EVERY = 64  # pages between flushes to the disk: what a power cut can cost
_NO_PAGE = Page((), ())


OmeAxes = tuple[str, tuple[int, ...]]


class StackRecorder:
    """Commits the frames of a stack in order, and the stack when all are there.

    While it runs, hidden files stand beside the raw: a journal of QC lines and
    a spool of compressed pages for each product. A page counts when its line
    is whole, so lines and pages agree after a kill at any byte.

    Frames may be handed over from several threads and out of order.
    """

    def __init__(self, names: OutputNames, *, probabilities: bool, labels: bool) -> None:
        self.names = names
        self._kinds = _kinds(names, probabilities=probabilities, labels=labels)
        self._spools = {path: PageSpool(_hidden(path, SPOOL_SUFFIX)) for path in self._kinds}
        self.records = Journal(_hidden(names.qc_lines, JOURNAL_SUFFIX))
        self._waiting: dict[int, tuple[QcRecord, Mapping[Path, Page]]] = {}
        self._guard = threading.Lock()
        self._pixel_size_um: float | None = None
        self.rewind(min(len(self.records), *map(len, self._spools.values())))

    @property
    def next_page(self) -> int:
        """Index of the first frame that is not recorded yet."""
        return len(self.records)

    def rewind(self, count: int) -> None:
        """Keep the first ``count`` frames and forget the rest."""
        self.records.truncate(count)
        for spool in self._spools.values():
            spool.truncate(count)

    def commit(self, page: int, record: QcRecord, products: Written) -> QcRecord:
        """Record frame ``page``; it reaches the disk when those before it have.

        Returns the record with the file and page of its mask.

        Raises
        ------
        StorageError
            The journal or a spool cannot be written. The frames recorded
            before stay; the stack goes on from there in the next run.
        """
        with self._guard:
            if isinstance(products, Products) and products.pixel_size_um:
                self._pixel_size_um = products.pixel_size_um
            self._waiting[page] = (record, _pages_of(products, self.names))
            while (ready := self._waiting.pop(self.next_page, None)) is not None:
                self.append(*ready)
        return with_mask(record, self.names, page)

    def append(self, record: QcRecord, pages: Mapping[Path, Page]) -> None:
        """Record the next frame with its compressed pages, by product file."""
        record = with_mask(record, self.names, self.next_page)
        try:
            for path, spool in self._spools.items():
                spool.append(pages.get(path, _NO_PAGE))
            self.records.append(record)
            if self.next_page % SYNC_EVERY == 0:
                self._sync()
        except OSError as error:
            raise storage_error(error, self.names.qc_lines) from error

    def settle_on(self, size_bytes: int, mtime_ns: int) -> None:
        """Note the size and time stamp that a raw has since its writer has finished."""
        self.records.settle_on(size_bytes, mtime_ns)

    def finish(self, axes: OmeAxes | None) -> None:
        """Write the masks and then the QC log, whole, and drop the hidden files.

        ``axes`` are those before Y and X and their lengths (``("TC", (10, 2))``)
        where the frames form a full grid in that order, else None.

        The journal is on the disk before an older QC log is removed, so that
        a kill at any moment leaves either the old results or all that is
        needed to publish the new ones.
        """
        self._sync()
        remove(self.names.qc_lines)  # an older log must not vouch for newer masks
        remove(self.names.qc)  # of a time when the raw held a single frame
        for path, spool in self._spools.items():
            require_ours(path)
            dtype, coloured = self._kinds[path]
            with whole_file(path) as handle:
                write_pages(
                    handle,
                    _pages_to_write(spool, self.records, dtype),
                    dtype,
                    coloured=coloured,
                    pixel_size_um=self._pixel_size_um,
                    ome_axes=axes if coloured and path.name.endswith(".ome.tif") else None,
                )
        with whole_file(self.names.qc_lines) as handle:
            handle.writelines(schema.encode(record) for record in self.records)
        sync_folder(self.names.folder)
        self.close()
        discard_hidden(self.names)
        for path in self.names.products():
            if path not in self._kinds:
                remove_ours(path)

    def close(self) -> None:
        """Close the hidden files; they stay, and the stack goes on from them."""
        self.records.close()
        for spool in self._spools.values():
            spool.close()

    def take_geometry(self, mask: tifffile.TiffFile) -> OmeAxes | None:
        """Carry the pixel size over from masks that were published before; return their axes."""
        page = mask.pages.first
        if page.resolutionunit == tifffile.RESUNIT.CENTIMETER and page.resolution[0] > 0:
            self._pixel_size_um = 1e4 / page.resolution[0]
        if not mask.is_ome:
            return None
        series = mask.series[0]
        return series.axes.removesuffix("YX"), series.shape[:-2]

    def _sync(self) -> None:
        try:
            for spool in self._spools.values():
                spool.sync()
            self.records.sync()
        except OSError as error:
            raise storage_error(error, self.names.qc_lines) from error


def read_lines(path: Path) -> Lines | None:
    """Read a published QC log of a stack; None unless line i is the whole record of frame i.

    Raises
    ------
    OSError
        It cannot be opened or read.
    """
    lines = Lines(path)
    if (
        not lines
        or lines.size_bytes != path.stat().st_size
        or any(record.frame.page != number for number, record in enumerate(lines))
    ):
        lines.close()
        return None
    return lines


def rewrite_lines(names: OutputNames, records: Sequence[QcRecord]) -> None:
    """Replace a published QC log by one that says the same of the same masks, but for details."""
    with whole_file(names.qc_lines) as handle:
        handle.writelines(schema.encode(record) for record in records)
    sync_folder(names.folder)


class StackPatcher:
    """Replaces the outcomes of some frames of a published stack, keeping the others as they are.

    Nothing on disk changes before ``finish``: a patch that is not finished is
    made again in the next run.
    """

    def __init__(self, names: OutputNames) -> None:
        self.names = names
        self._changes: dict[int, tuple[QcRecord, Mapping[Path, Page] | None]] = {}
        self._guard = threading.Lock()

    def commit(self, page: int, record: QcRecord, products: Written) -> QcRecord:
        """Note the new outcome of one frame; return its record."""
        pages = None if products is Keep.PRODUCTS else _pages_of(products, self.names)
        with self._guard:
            self._changes[page] = (record, pages)
        return with_mask(record, self.names, page)

    def finish(self, axes: OmeAxes | None) -> None:
        """Publish the stack with the changes, with the axes given or those that it had."""
        if not self._changes:
            return
        recorder, published_axes = copy_published(self.names, self._changes)
        try:
            recorder.finish(axes or published_axes)
        finally:
            recorder.close()

    def close(self) -> None:
        """Do nothing: no file is kept open."""


def copy_published(
    names: OutputNames,
    changes: Mapping[int, tuple[QcRecord, Mapping[Path, Page] | None]],
    settled_on: tuple[int, int] | None = None,
) -> tuple[StackRecorder, OmeAxes | None]:
    """Begin a stack's results with those that are published, some replaced.

    ``settled_on`` is what the records are to say of their raw: size, bytes, and time stamp, ns.
    Returns the recorder, which stands behind the last published frame, and
    the axes of the published masks.
    """
    discard_hidden(names)
    recorder = StackRecorder(
        names, probabilities=names.probabilities.exists(), labels=names.labels.exists()
    )
    try:
        with ExitStack() as open_files:
            files = {
                path: open_files.enter_context(tifffile.TiffFile(path))
                for path in names.products()
                if path.exists()
            }
            axes = recorder.take_geometry(files[names.mask])
            published = read_lines(names.qc_lines)
            if published is not None and settled_on is not None:
                published.settle_on(*settled_on)
            for number, record in enumerate(published or []):
                changed, pages = changes.get(number, (record, None))
                if pages is None:
                    pages = {path: _page(file, number) for path, file in files.items()}
                recorder.append(changed, pages)
    except OSError as error:
        recorder.close()
        raise storage_error(error, names.mask) from error
    except BaseException:
        recorder.close()
        raise
    return recorder, axes


def hidden_files(names: OutputNames) -> list[Path]:
    """Return the hidden files that a stack under way may have."""
    spools = [_hidden(path, SPOOL_SUFFIX) for path in names.products()]
    return [_hidden(names.qc_lines, JOURNAL_SUFFIX), *spools]


def spool_of(product: Path) -> Path:
    """Return where the pages of a mask are kept until the stack is whole."""
    return _hidden(product, SPOOL_SUFFIX)


def is_hidden(path: Path) -> bool:
    """Tell a hidden file of some stack by its name."""
    return path.name.startswith(".") and path.name.endswith((JOURNAL_SUFFIX, SPOOL_SUFFIX))


def discard_hidden(names: OutputNames) -> None:
    """Remove the hidden files of a stack."""
    for path in hidden_files(names):
        remove(path)


def read_journal(names: OutputNames) -> Sequence[QcRecord]:
    """Read the records of a stack that is half done."""
    path = _hidden(names.qc_lines, JOURNAL_SUFFIX)
    return Lines(path) if path.exists() else []


def _pages_of(products: Written, names: OutputNames) -> dict[Path, Page]:
    if not isinstance(products, Products):
        return {}
    return {path: content[0] for path, content in products.named(names).items()}


def _kinds(
    names: OutputNames, *, probabilities: bool, labels: bool
) -> dict[Path, tuple[np.dtype[Any], bool]]:
    kinds: dict[Path, tuple[np.dtype[Any], bool]] = {names.mask: (MASK_DTYPE, True)}
    if probabilities:
        kinds[names.probabilities] = (PROBABILITY_DTYPE, False)
    if labels:
        kinds[names.labels] = (LABEL_DTYPE, False)
    return kinds


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _pages_to_write(
    spool: PageSpool, records: Iterable[QcRecord], dtype: np.dtype[Any]
) -> list[tuple[tuple[int, ...], Iterator[bytes]]]:
    """Pair each frame's shape with its strips; frames without a mask get a page of zeros.

    Such a page has the frame's own shape, or, where the frame could not be
    read, the commonest shape of the stack.
    """
    shapes = spool.shapes()
    frame_shapes = [
        tuple(record.frame.shape[:2]) if record.frame.shape else () for record in records
    ]
    known = Counter(shape for shape in (*shapes, *frame_shapes) if len(shape) >= 2)
    commonest = known.most_common(1)[0][0] if known else (1, 1)
    planes = Counter(shape[:-2] for shape in shapes if shape).most_common(1)
    blanks: dict[tuple[int, ...], list[bytes]] = {}

    def strips(number: int, shape: tuple[int, ...]) -> Iterator[bytes]:
        if shapes[number]:
            yield from spool.strips(number)
            return
        if shape not in blanks:
            blanks[shape] = compress(np.zeros(shape, dtype))
        yield from blanks[shape]

    pages = []
    for number, own in enumerate(shapes):
        lead = planes[0][0] if planes else ()
        shape = own or (*lead, *(frame_shapes[number] or commonest[-2:]))
        pages.append((shape, strips(number, shape)))
    return pages


def _page(file: tifffile.TiffFile, number: int) -> Page:
    page = file.pages[number]
    strips = []
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.filehandle.seek(offset)
        strips.append(file.filehandle.read(size))
    return Page(tuple(page.shape), strips)
