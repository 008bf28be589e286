"""The verdict on a frame, provisional while a run goes on and final when it is settled."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from segbatch.infer.quality.measures import Measures
from segbatch.infer.quality.rules import Peers, Rule, certain_rules, judge_by_rules

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from segbatch.settings.sections import QualitySettings

# Frames that a provisional verdict looks back on: the cost of each stays the same.
_LOOK_BACK_FRAMES = 256
_RENEWED_PART = 32  # their statistics are renewed when one in so many of them is another


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether a frame is good, why not, and what each rule found.

    ``reasons`` holds the reason of the first rule that failed, or nothing.
    ``provisional`` means that the frame was judged before the run was settled
    and too few frames were known to compare it with.
    """

    accepted: bool
    reasons: tuple[str, ...]
    provisional: bool
    rules: list[Rule]


class _Known(msgspec.Struct, frozen=True):
    """A frame that was judged: what settling the run needs of it.

    A run may have a hundred thousand: measures are packed, in a quarter of the memory.
    """

    packed: bytes
    pixel_hash: str
    group: Hashable

    @property
    def measures(self) -> Measures:
        values = msgspec.msgpack.decode(self.packed)
        return Measures(**dict(zip(Measures.__struct_fields__, values, strict=True)))


def _pack(measures: Measures) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.astuple(measures))


class Judge:
    """Judges the frames of one run, each by its own physics and against the others.

    Parameters
    ----------
    settings
        Thresholds.
    """

    def __init__(self, settings: QualitySettings) -> None:
        self._settings = settings
        self._known: dict[Any, _Known] = {}
        self._first_with: dict[str, Any] = {}
        self._recent: dict[Hashable, deque[Measures]] = {}
        self._peers: dict[Hashable, tuple[Peers, int]] = {}  # and frames that came since
        self._recent_of_run: deque[Measures] = deque(maxlen=_LOOK_BACK_FRAMES)

    def judge(
        self, frame_key: Any, measures: Measures, pixel_hash: str, group: Hashable
    ) -> Verdict:
        """Judge a frame with what is known so far, and remember it.

        Parameters
        ----------
        frame_key
            Names the frame and orders it in the run; the keys of a run must be comparable.
        measures
            Of the frame, measured now or read back from the record of an interrupted run.
        pixel_hash
            Of its pixels, shape and dtype: frames with the same hash are the same.
        group
            Frames of one group are compared with each other: channel, exposure, gain.
        """
        self._known[frame_key] = _Known(_pack(measures), pixel_hash, group)
        repeated = self._first_with.setdefault(pixel_hash, frame_key) != frame_key
        recent = self._recent.setdefault(group, deque(maxlen=_LOOK_BACK_FRAMES))
        if self._stands_for_run(measures, repeated):
            recent.append(measures)
            self._recent_of_run.append(measures)
        return self._verdict(measures, repeated, self._peers_in(group), final=False)

    def _peers_in(self, group: Hashable) -> Peers:
        """Return what the frames of a group are compared with for now."""
        recent = self._recent[group]
        peers, frames_since = self._peers.get(group, (None, 0))
        if peers is None or frames_since >= len(recent) // _RENEWED_PART:
            peers, frames_since = Peers(recent, self._recent_of_run, self._settings), 0
        self._peers[group] = peers, frames_since + 1
        return peers

    def forget(self, frame_keys: Iterable[Any]) -> None:
        """Drop frames that are no longer what was judged; unknown keys are passed over."""
        gone = {key for key in frame_keys if self._known.pop(key, None) is not None}
        for pixel_hash, key in list(self._first_with.items()):
            if key in gone:
                del self._first_with[pixel_hash]

    def settle(self) -> dict[Any, Verdict]:
        """Judge every remembered frame again, with the statistics of the whole run.

        Returns
        -------
        dict
            Verdicts in the order of the frame keys, none provisional. They follow
            from the frames alone, not from the order in which they were judged.
        """
        first: dict[str, Any] = {}
        repeated: dict[Any, bool] = {}
        by_group: dict[Hashable, list[Measures]] = {}
        of_run: list[Measures] = []
        for key in sorted(self._known):
            known = self._known[key]
            repeated[key] = first.setdefault(known.pixel_hash, key) != key
            members = by_group.setdefault(known.group, [])
            measures = known.measures
            if self._stands_for_run(measures, repeated[key]):
                members.append(measures)
                of_run.append(measures)
        peers = {
            group: Peers(members, of_run, self._settings) for group, members in by_group.items()
        }
        verdicts = {}
        for key, again in repeated.items():
            known = self._known[key]
            verdicts[key] = self._verdict(known.measures, again, peers[known.group], final=True)
        return verdicts

    def _stands_for_run(self, measures: Measures, repeated: bool) -> bool:
        rules = certain_rules(measures, repeated, self._settings)
        return not any(rule.failed for rule in rules)

    def _verdict(self, measures: Measures, repeated: bool, peers: Peers, *, final: bool) -> Verdict:
        rules = judge_by_rules(measures, repeated, peers, self._settings)
        failed = [rule for rule in rules if rule.failed] if self._settings.enabled else []
        by_comparison = not failed or failed[0].compared_with != "frame"
        return Verdict(
            accepted=not failed,
            reasons=tuple(rule.reason for rule in failed[:1]),
            provisional=not final and not peers.warm and by_comparison,
            rules=rules,
        )
