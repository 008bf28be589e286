"""When a file is complete: each format's own proof, and for all others a quiet time.

Neither "the size stopped changing" nor "the file was closed" proves anything:
Micro-Manager and NDTiff preallocate their files, and a frame that is half
written decodes as a valid one that is nearly all zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segbatch.acquire import micromanager
from segbatch.acquire.folder.scan import Seen
from segbatch.acquire.folder.sound import ANY_SIZE, ends_in_zeros, examine, page_ends_in_zeros
from segbatch.acquire.layout import read_page
from segbatch.acquire.raw import RawFile
from segbatch.acquire.sidefiles import IndexEntry
from segbatch.acquire.tiff import Header, read_header, read_ifd
from segbatch.errors import FrameError

FRAMES_AT_ONCE = 512  # that are vetted in one look at a stack
_PATIENCE = 10  # quiet times after which a writer that owes a sign counts as gone
_SOONEST_S = 0.02
_ROOM_BYTES = 1 << 20  # behind the last frame, by which a file that is at work is known
_PADDING_BYTES = 16


@dataclass(slots=True)
class Candidate:
    """A raw file that has not been handed over, or not to its end.

    Attributes
    ----------
    seen
        The file in its present state.
    since
        When that state was first seen (seconds, monotonic).
    renamed
        It was renamed into place from a temporary name.
    needs_quiet
        It changed after it was handed over: whatever its writer says, it must be quiet first.
    whole, ends_in_zeros
        What was found in this state; ``whole`` is None while it was not opened.
    is_stack
        Its frames are handed over as they are proven complete.
    named, vetted, reported
        Frames that a stack names, that were found complete, and that were handed over.
    last_offset
        Where the last vetted frame lies: a stack that was written anew is known by it.
    doubtful, doubted_until
        Frames below ``doubtful`` are taken even if they end in zeros, from then on.
    """

    seen: Seen
    since: float
    renamed: bool = False
    needs_quiet: bool = False
    whole: bool | None = None
    ends_in_zeros: bool = False
    is_stack: bool = False
    named: int = 0
    vetted: int = 0
    reported: int = 0
    last_offset: int = 0
    doubtful: int = 0
    doubted_until: float = 0.0
    next_look: float = 0.0

    def change(self, seen: Seen, now: float) -> None:
        """Take note of a new state."""
        self.seen, self.since = seen, now
        self.whole, self.renamed = None, False


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look came to.

    ``complete``: hand it over; ``frames`` of a stack are proven complete, and
    where it is ``closed`` no more will come. ``again_in_s``: when to look again.
    """

    complete: bool = False
    frames: int | None = None
    closed: bool = True
    again_in_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Vetted:
    """How far a stack's frames were followed: ``wanted`` of them are to be had.

    ``more``: the look ended because of its bound, and goes on at once.
    """

    wanted: int
    closed: bool
    more: bool = False


class Oracle:
    """Decides for one file after another, with the quiet time of one tree (seconds)."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s

    def judge(self, file: Candidate, now: float) -> Finding:
        """Say whether ``file`` is complete, and when to look again if it is not."""
        path = Path(file.seen.path)
        try:
            if (path.parent / micromanager.INDEX_NAME).is_file():
                found = self._look_into(file, path, now, indexed=True)
            elif file.is_stack or "MMStack" in path.name:
                found = self._look_into(file, path, now, indexed=False)
            else:
                found = None
            if found is not None:
                return found
            finding = self._single(file, path, now - file.since)
        except FrameError:  # cut short, or gone: what it is to become shows later
            finding = self._wait(now - file.since)
        if not finding.complete and "Stack" in path.name:
            # The first frames of a stack make it one: they shall not wait for a quiet time.
            return Finding(again_in_s=self._pace(file, now))
        return finding

    def _single(self, file: Candidate, path: Path, quiet_s: float) -> Finding:
        """Look at a file that is complete as a whole, or not at all."""
        saved = micromanager.saved_by_writer(path) if path.name.startswith("img_") else None
        if saved is False and quiet_s < _PATIENCE * self._settle_s:
            return Finding(again_in_s=_between(_SOONEST_S, quiet_s, self._settle_s))
        proven = not file.needs_quiet and (saved or file.renamed)
        if not proven and quiet_s < self._settle_s:
            return self._wait(quiet_s)
        if file.whole is None:
            file.whole = False
            found = examine(path)
            file.whole, file.ends_in_zeros = found.whole, found.ends_in_zeros
            if found.is_stack:
                file.is_stack = True
                return Finding()
        if not file.whole:
            return self._wait(quiet_s)
        # The writer may have made room for rows that are still to come.
        needed_s = self._settle_s * ((not proven) + file.ends_in_zeros)
        if quiet_s < needed_s:
            return Finding(again_in_s=needed_s - quiet_s)
        return Finding(complete=True)

    def _wait(self, quiet_s: float) -> Finding:
        """Look again when the file has settled; later and later where that changed nothing."""
        left_s = self._settle_s - quiet_s
        later_s = _between(self._settle_s, quiet_s, 20 * self._settle_s)
        return Finding(again_in_s=left_s if left_s > 0 else later_s)

    def _look_into(
        self, file: Candidate, path: Path, now: float, *, indexed: bool
    ) -> Finding | None:
        """Look at a stack, whose frames are complete one by one; None where it is none as yet."""
        raw = RawFile(path)
        try:
            vet = self._ndtiff if indexed else self._image_stack
            vetted = vet(file, raw, read_header(raw), now)
        finally:
            raw.close()
        if vetted is None:
            return None
        file.is_stack = True
        quiet_s = now - file.since
        if file.needs_quiet and quiet_s < self._settle_s:
            return Finding(again_in_s=self._settle_s - quiet_s)
        closed = vetted.closed and 0 < file.vetted == vetted.wanted
        again_in_s = 0.0 if vetted.more else self._pace(file, now)
        if file.vetted > file.reported or closed:
            return Finding(True, file.vetted, closed, again_in_s)
        return Finding(again_in_s=again_in_s)

    def _image_stack(
        self, file: Candidate, raw: RawFile, header: Header, now: float
    ) -> _Vetted | None:
        """Follow ``*_MMStack_*.ome.tif``: entry N+1 of the index map proves frame N."""
        found = micromanager.find_stack_map(raw, header)
        if found is None:
            return None
        start = max(0, file.vetted - 1)
        offsets = [entry[4] for entry in found.entries(raw, start)]
        if file.vetted and offsets[:1] != [file.last_offset]:
            self._begin_anew(file)
            return self._image_stack(file, raw, header, now)
        named = start + len(offsets)
        self._note_growth(file, named, now)
        closed = found.marked_closed or named == found.capacity
        if closed and now - file.since < self._settle_s:
            return _Vetted(named, closed=False)
        wanted = named - (not closed and named > 0)
        new = offsets[file.vetted - start : wanted - start]
        for offset in new[:FRAMES_AT_ONCE]:
            try:
                page = read_page(read_ifd(raw, header, offset), ANY_SIZE)
            except FrameError:  # the file is being copied, and the map came first
                return _Vetted(wanted, closed=False)
            if not self._passes(file, now, page_ends_in_zeros(raw, page)):
                return _Vetted(wanted, closed=False)
            file.vetted, file.last_offset = file.vetted + 1, offset
        return _Vetted(wanted, closed, len(new) > FRAMES_AT_ONCE)

    def _ndtiff(self, file: Candidate, raw: RawFile, header: Header, now: float) -> _Vetted | None:
        """Follow a stack of an NDTiff data set: an entry of the index proves its frame."""
        index = micromanager.ndtiff_index(raw.path, header.order)
        if index is None or not (index.entries or micromanager.is_ndtiff(raw, header.order)):
            return None
        raw.refresh()  # the index was read after the file was opened
        entries = index.entries
        if file.vetted and [e.offset for e in entries[file.vetted - 1 :][:1]] != [file.last_offset]:
            self._begin_anew(file)
        wanted = len(entries)
        self._note_growth(file, wanted, now)
        end = max((_end(entry) for entry in entries[-1:]), default=0)
        quiet_s = now - file.since
        at_work = index.room_follows or raw.size > end + _ROOM_BYTES
        if not at_work and quiet_s < self._settle_s:
            return _Vetted(wanted, closed=False)  # a finished set, which may be being copied
        new = entries[file.vetted : file.vetted + FRAMES_AT_ONCE]
        for entry in new:
            size = _pixel_bytes(entry)
            if entry.offset + size > raw.size:
                return _Vetted(wanted, closed=False)
            zeros = ends_in_zeros(raw, entry.offset, size, size // entry.height)
            if not self._passes(file, now, zeros):
                return _Vetted(wanted, closed=False)
            file.vetted, file.last_offset = file.vetted + 1, entry.offset
        trimmed = end <= raw.size <= end + _PADDING_BYTES
        finished = index.is_whole or not index.is_last
        gone = not at_work and quiet_s >= _PATIENCE * self._settle_s
        closed = quiet_s >= self._settle_s and ((trimmed and finished) or gone)
        return _Vetted(wanted, closed, file.vetted < wanted)

    def _begin_anew(self, file: Candidate) -> None:
        """Forget the stack that was followed: under its name stands another."""
        file.named = file.vetted = file.reported = file.doubtful = 0

    def _note_growth(self, file: Candidate, named: int, now: float) -> None:
        """Note that a stack which names other frames is not quiet, whatever its time stamp says."""
        if named != file.named:
            file.named, file.since = named, now

    def _passes(self, file: Candidate, now: float, zeros: bool) -> bool:
        """Tell whether the next frame may be taken; one that ends in zeros is doubted at first.

        On a share, what a writer wrote first may appear last.
        """
        if zeros and file.vetted >= file.doubtful:
            file.doubtful, file.doubted_until = file.named, now + self._settle_s
        return not zeros or now >= file.doubted_until

    def _pace(self, file: Candidate, now: float) -> float:
        """Return the time until a stack is looked at again: a look is cheap, and frames wait."""
        soon_s = max(_SOONEST_S, self._settle_s / 10)
        return _between(soon_s, (now - file.since) / 2, self._settle_s)


def _between(least: float, value: float, most: float) -> float:
    return max(least, min(value, most))


def _end(entry: IndexEntry) -> int:
    metadata_end = entry.metadata_offset + entry.metadata_bytes
    return max(entry.offset + _pixel_bytes(entry), metadata_end)


def _pixel_bytes(entry: IndexEntry) -> int:
    itemsize, samples, _ = micromanager.PIXEL_TYPES.get(entry.pixel_type, (1, 1, None))
    return entry.width * entry.height * itemsize * samples
