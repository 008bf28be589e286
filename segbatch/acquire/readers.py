"""The kinds of raw files: PNG, stacks of NDTiff data sets, and TIFF in all its uses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from segbatch.acquire import metadata, micromanager
from segbatch.acquire.base import Options, Picture, Source
from segbatch.acquire.decode import png_pixels, tiff_pixels, to_gray_or_rgb
from segbatch.acquire.layout import Page, read_page
from segbatch.acquire.raw import CONTENT_ERRORS, RawFile, unreadable
from segbatch.acquire.tiff import Header, Ifd, read_ifd
from segbatch.errors import FrameError, UnreadableFrameError, UnsupportedFrameError
from segbatch.frame import Acquisition

if TYPE_CHECKING:
    from segbatch.acquire.micromanager import IndexEntry


class PngSource(Source):
    """A PNG file: one frame."""

    def _picture(self, page: int) -> Picture:
        pixels = png_pixels(self._file, self._options.max_bytes)
        return Picture(pixels, 8 * pixels.dtype.itemsize)

    def _decoded_bytes(self, page: int) -> int:
        head = self._file.read(16, 9)  # of the IHDR chunk: width, height, bit depth
        width, height = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big")
        return width * height * 4 * (2 if head[8] > 8 else 1)

    def _position(self, page: int) -> dict[str, int]:
        return {}


class NdtiffSource(Source):
    """A stack of an NDTiff data set, read by the entries of its index."""

    def __init__(
        self, file: RawFile, header: Header, entries: list[IndexEntry], options: Options
    ) -> None:
        file.refresh()  # the index was read after the file was opened, and both may grow
        super().__init__(file, "ndtiff", len(entries), options)
        self._order = header.order
        self._entries = entries

    def _picture(self, page: int) -> Picture:
        entry = self._entries[page]
        kind = micromanager.PIXEL_TYPES.get(entry.pixel_type)
        if kind is None or entry.compression:
            raise UnsupportedFrameError(
                f"{self.path}: frame {page} has pixel type {entry.pixel_type}, "
                f"compression {entry.compression}",
                "types 0 to 6, uncompressed",
                "save it as TIFF",
            )
        itemsize, samples, hint = kind
        size = entry.width * entry.height * samples * itemsize
        end = entry.offset + size
        if not size or end > self._file.size:
            raise unreadable(
                self.path,
                f"frame {page} of {entry.width} x {entry.height} pixels ends at byte {end}, "
                f"the file has {self._file.size}",
                "pixels inside the file",
                "it is truncated: copy or acquire it again",
            )
        if size > self._options.max_bytes:
            raise UnsupportedFrameError(
                f"{self.path}: frame {page} is {size / 2**30:.4g} GiB",
                f"at most {self._options.max_bytes / 2**30:.4g} GiB (max_file_gib)",
                "raise max_file_gib",
            )
        shape = (entry.height, entry.width, samples)[: 2 if samples == 1 else 3]
        stored = self._options.empty(shape, f"{self._order}u{itemsize}")
        self._file.read_into(entry.offset, stored.reshape(-1).view(np.uint8).data)
        pixels = stored.astype(f"u{itemsize}", copy=False)
        return Picture(pixels, 8 * itemsize, self._acquisition(entry), hint)

    def _decoded_bytes(self, page: int) -> int:
        entry = self._entries[page]
        itemsize, samples, _ = micromanager.PIXEL_TYPES.get(entry.pixel_type, (0, 0, None))
        return entry.width * entry.height * samples * itemsize

    def _position(self, page: int) -> dict[str, int]:
        return metadata.indices(metadata.parse_json(self._entries[page].axes))

    def _acquisition(self, entry: IndexEntry) -> Acquisition:
        axes = metadata.parse_json(entry.axes)
        try:
            meta = metadata.parse_json(self._file.read(entry.metadata_offset, entry.metadata_bytes))
        except UnreadableFrameError:  # it lies outside the file: that costs no frame
            meta = {}
        said = metadata.from_micro_manager(meta)
        channel = axes.get("channel")
        if isinstance(channel, str):
            said = replace(said, channel=channel)
        return replace(said, position=metadata.indices(axes))


class TiffSource(Source):
    """A TIFF whose frames are pages, or one page with its frames in a run behind it.

    Parameters
    ----------
    offsets
        Of the frames' directories.
    positions
        Of the frames along the axes, where an index map names them.
    broken
        The chain of pages breaks off; the frame that it should lead to is
        counted and cannot be read, so that the loss stands in the records.
    """

    def __init__(
        self,
        file: RawFile,
        header: Header,
        offsets: list[int],
        options: Options,
        *,
        positions: list[dict[str, int]] | None = None,
        broken: bool = False,
    ) -> None:
        super().__init__(file, "mmstack" if positions else "tiff", len(offsets) + broken, options)
        self._header = header
        self._offsets = offsets
        self._positions = positions
        self._first = read_ifd(file, header, offsets[0])
        self._layout = metadata.Layout()
        self._single = Acquisition()
        self._run: Page | None = None
        self._run_frames = 0
        self._first_page: Page | None = None
        try:
            self._learn(self._first)
        except (FrameError, *CONTENT_ERRORS):
            self._layout = metadata.Layout()  # metadata never costs a frame

    def _learn(self, ifd: Ifd) -> None:
        """Take from the first page what it says of the whole file."""
        description = ifd.text(metadata.DESCRIPTION_TAG)
        entries = metadata.imagej_entries(description)
        kind = "tiff"
        if "<OME" in description[:2000]:
            kind, self._layout = "ome-tiff", metadata.from_ome(description)
        elif entries:
            kind, self._layout = "imagej", metadata.from_imagej(entries, ifd.ratio(282))
        else:
            self._layout = metadata.from_resolution(ifd)
        if self._positions is None:
            self.kind = kind
        if self.frame_count == 1 and kind == "imagej":
            self._find_run(ifd, metadata.whole(entries.get("images"), 2, 1 << 31) or 1)
        if self.frame_count == 1 and kind != "ome-tiff":
            self._learn_single(ifd)

    def _find_run(self, ifd: Ifd, images: int) -> None:
        """Find the frames of an ImageJ stack that has one directory for all.

        ImageJ writes stacks above 4 GiB so: the frames follow each other, and
        the description says how many. A description that was copied along
        with a single frame is recognised by the frames' not being there.
        """
        try:
            page = self._page(ifd)
        except (UnreadableFrameError, UnsupportedFrameError):
            return  # reading the frame says why
        there = (self._file.size - page.offsets[0]) // sum(page.counts)
        if images < 2 or there < 2 or not page.is_plain:
            return
        self._run = page
        self._run_frames = min(images, there)
        self.frame_count = self._run_frames + (there < images)

    def _learn_single(self, ifd: Ifd) -> None:
        """Take what Micro-Manager says of the only frame, in the file or beside it."""
        meta = metadata.parse_json(metadata.imagej_info(ifd) or "{}")
        meta = meta or micromanager.metadata_txt(self.path)
        if meta:
            self.kind = "micro-manager" if self._positions is None else self.kind
            position = micromanager.position_in_name(self.path.name)
            said = metadata.from_micro_manager(meta)
            self._single = replace(said, position=position or said.position)

    def _picture(self, page: int) -> Picture:
        ifd = self._first
        if page >= (self._run_frames or len(self._offsets)):
            raise unreadable(
                self.path,
                f"breaks off after {page} frames",
                "a whole file",
                "it is truncated or corrupt: copy or acquire it again",
            )
        if self._run is not None:
            step = page * sum(self._run.counts)
            layout = replace(self._run, offsets=[offset + step for offset in self._run.offsets])
        else:
            ifd = self._directory(page)
            layout = self._page(ifd)
        # ImageJ's palettes only show counts in colour: the counts are what was measured.
        indices = self.kind in ("imagej", "micro-manager")
        pixels = to_gray_or_rgb(
            ifd, layout, tiff_pixels(ifd, layout, self._options.empty), indices=indices
        )
        bits = layout.bits if pixels.dtype == layout.dtype else 8 * pixels.dtype.itemsize
        return Picture(pixels, bits, self._acquisition(ifd, page), self._layout.bit_hint)

    def _page(self, ifd: Ifd) -> Page:
        """Return a page's layout; that of the first, which is often the only one, is kept."""
        if ifd is not self._first:
            return read_page(ifd, self._options.max_bytes)
        if self._first_page is None:
            self._first_page = read_page(ifd, self._options.max_bytes)
        return self._first_page

    def _directory(self, page: int) -> Ifd:
        offset = self._offsets[page]
        if offset == self._first.offset:
            return self._first
        return read_ifd(self._file, self._header, offset)

    def _decoded_bytes(self, page: int) -> int:
        if self._run is not None:
            return self._run.decoded_bytes
        if page >= len(self._offsets):
            return 0
        return self._page(self._directory(page)).decoded_bytes

    def _position(self, page: int) -> dict[str, int]:
        if self._positions is not None:
            return self._positions[page]
        return self._layout.acquisition(page, self.frame_count).position

    def _acquisition(self, ifd: Ifd, page: int) -> Acquisition:
        known = metadata.merged(self._single, self._layout.acquisition(page, self.frame_count))
        try:
            text = ifd.text(metadata.MICRO_MANAGER_TAG)
        except UnreadableFrameError:
            text = ""
        if text:
            known = metadata.merged(metadata.from_micro_manager(metadata.parse_json(text)), known)
        if self._positions is not None:
            known = replace(known, position=self._positions[page])
        return known
