"""The verdict on a frame: which rules it was held against, and what they found.

Rules that follow from one frame alone come first, in the order of the reasons:
torn, duplicate, overexposed, underexposed, empty. Noise and blur are then compared
with the other frames of the run, backed by loose absolute limits, because a level
of noise or a sharpness that is normal for one specimen is a fault in another.
The first rule that fails names the reason; all are recorded.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from segbatch.infer.quality.measures import Measures
    from segbatch.settings import QualitySettings

# Frames that a provisional verdict looks back on: the cost of each stays the same.
_LOOK_BACK_FRAMES = 256
# Frames among the sharpest tenth stand for the run's focus.
_SHARP_QUANTILE = 0.9
# Median absolute deviation to standard deviation of a normal variable.
_MAD_TO_SIGMA = 1.4826


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rule as it was applied to one frame.

    Attributes
    ----------
    rule
        Its name; ``reason`` is what it rejects for.
    measure, value
        What was looked at; None where the frame has no such value.
    side, threshold
        The rule fails where the value is ``above`` or ``below`` the threshold;
        None where there was nothing to compare with.
    failed
        Whether it did.
    compared_with
        ``frame`` for a fixed threshold, ``group`` or ``run`` for one that follows
        from ``frames`` other frames with ``reference`` and ``spread``.
    """

    rule: str
    reason: str
    measure: str
    value: float | None
    side: Literal["above", "below"]
    threshold: float | None
    failed: bool
    compared_with: Literal["frame", "group", "run"] = "frame"
    frames: int | None = None
    reference: float | None = None
    spread: float | None = None


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether a frame is good, why not, and by which rules.

    ``provisional`` means that too few frames were known to compare it with.
    """

    accepted: bool
    reasons: tuple[str, ...]
    provisional: bool
    rules: list[Rule]


class _Known(msgspec.Struct, frozen=True):
    """A frame that was judged: what settling the run needs of it."""

    measures: Measures
    pixel_hash: str
    group: Hashable


class Judge:
    """Judges the frames of one run, each against its own physics and against the others.

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
        self._recent_of_run: deque[Measures] = deque(maxlen=_LOOK_BACK_FRAMES)

    def judge(
        self, frame_key: Any, measures: Measures, pixel_hash: str, group: Hashable
    ) -> Verdict:
        """Judge a frame with what is known so far, and remember it.

        Parameters
        ----------
        frame_key
            Names the frame and orders it in the run; keys of a run must be comparable.
        measures
            Of the frame, measured now or read back from an earlier run's record.
        pixel_hash
            Of its pixels, shape and dtype.
        group
            Frames of one group are compared with each other: channel, exposure, gain.
        """
        known = _Known(measures, pixel_hash, group)
        self._known[frame_key] = known
        first = self._first_with.setdefault(pixel_hash, frame_key)
        rules = fixed_rules(measures, first != frame_key, self._settings)
        recent = self._recent.setdefault(group, deque(maxlen=_LOOK_BACK_FRAMES))
        if not any(rule.failed for rule in rules):
            recent.append(measures)
            self._recent_of_run.append(measures)
        return _verdict(rules, measures, _Peers(recent, self._recent_of_run, self._settings), False)

    def settle(self) -> dict[Any, Verdict]:
        """Judge every remembered frame again, with the statistics of the whole run.

        Returns
        -------
        dict
            Verdicts in the order of the frame keys, none provisional. They follow
            from the frames alone, not from the order in which they were judged.
        """
        first: dict[str, Any] = {}
        rules: dict[Any, list[Rule]] = {}
        by_group: dict[Hashable, list[Measures]] = {}
        of_run: list[Measures] = []
        for key in sorted(self._known):
            known = self._known[key]
            repeated = first.setdefault(known.pixel_hash, key) != key
            rules[key] = fixed_rules(known.measures, repeated, self._settings)
            if not any(rule.failed for rule in rules[key]):
                by_group.setdefault(known.group, []).append(known.measures)
                of_run.append(known.measures)
        peers = {
            group: _Peers(members, of_run, self._settings) for group, members in by_group.items()
        }
        alone = _Peers([], of_run, self._settings)
        return {
            key: _verdict(
                rules[key],
                self._known[key].measures,
                peers.get(self._known[key].group, alone),
                True,
            )
            for key in rules
        }


def fixed_rules(m: Measures, repeated: bool, s: QualitySettings) -> list[Rule]:
    """Apply the rules that follow from the frame itself, in the order of the reasons."""
    torn = _fails_above(m.tear_fraction, s.torn_columns_fraction) and not _fails_below(
        m.tear_fraction, s.torn_rival_ratio * (m.tear_rival_fraction or 0.0)
    )
    clipped = _fails_above(m.saturated_bright_fraction, s.saturated_bright_fraction) and (
        _fails_above(m.saturated_object_fraction, s.saturated_object_fraction)
    )
    nothing = m.structure_cells is not None and m.structure_cells < s.empty_structure_cells
    flat = m.maximum is None or m.maximum == m.minimum
    faint = _fails_below(m.signal, s.underexposed_signal_counts) and not nothing
    # Faint structure without fine detail is far out of focus: more light would not help.
    faint = faint and m.ceiling is not None and not _fails_below(m.fine_snr, s.fine_snr)
    return [
        _rule(
            "zero-tail",
            "torn",
            "zero_tail_rows",
            m.zero_tail_rows,
            "above",
            s.torn_zero_rows - 1,
            m.zero_tail_rows >= s.torn_zero_rows,
        ),
        _rule(
            "joined-exposures",
            "torn",
            "tear_fraction",
            m.tear_fraction,
            "above",
            max(s.torn_columns_fraction, s.torn_rival_ratio * (m.tear_rival_fraction or 0.0)),
            torn,
        ),
        _rule(
            "same-pixels",
            "duplicate",
            "earlier_frames_with_hash",
            int(repeated),
            "above",
            0,
            repeated,
        ),
        _rule(
            "saturated",
            "overexposed",
            "saturated_fraction",
            m.saturated_fraction,
            "above",
            s.saturated_fraction,
            _fails_above(m.saturated_fraction, s.saturated_fraction),
        ),
        _rule(
            "saturated-objects",
            "overexposed",
            "saturated_bright_fraction",
            m.saturated_bright_fraction,
            "above",
            s.saturated_bright_fraction,
            clipped,
        ),
        _rule(
            "faint",
            "underexposed",
            "signal",
            m.signal,
            "below",
            s.underexposed_signal_counts,
            faint,
        ),
        _rule(
            "no-structure",
            "empty",
            "structure_cells",
            m.structure_cells,
            "below",
            s.empty_structure_cells,
            nothing or flat,
        ),
    ]


class _Peers:
    """Statistics of the frames that a frame is compared with."""

    def __init__(
        self, group: Iterable[Measures], run: Iterable[Measures], s: QualitySettings
    ) -> None:
        self.settings = s
        group = list(group)
        noise = _log2(m.noise_sigma for m in group)
        self.noise_scope: Literal["group", "run"] = "group"
        if len(noise) < s.warm_up_frames:
            # Noise in counts is comparable across a run in a way that focus is not.
            noise, self.noise_scope = _log2(m.noise_sigma for m in run), "run"
        self.noise = noise if len(noise) >= s.warm_up_frames else []
        focus = [m.focus for m in group if m.focus is not None]
        self.focus = focus if len(focus) >= s.warm_up_frames else []
        self.warm = bool(self.noise) and bool(self.focus)

    def noise_rule(self, m: Measures) -> Rule:
        """Hold a frame's noise against the others'."""
        s = self.settings
        value = float(np.log2(m.noise_sigma)) if m.noise_sigma else None
        if not self.noise:
            return _rule(
                "noise-above-run", "noisy", "log2_noise_sigma", value, "above", None, False
            )
        middle = float(np.median(self.noise))
        spread = _MAD_TO_SIGMA * float(np.median(np.abs(np.array(self.noise) - middle)))
        spread = max(spread, s.noise_spread_octaves)
        limit = middle + s.noise_z * spread
        failed = _fails_above(value, limit) and _fails_below(m.snr, s.noise_clear_snr)
        return Rule(
            rule="noise-above-run",
            reason="noisy",
            measure="log2_noise_sigma",
            value=value,
            side="above",
            threshold=limit,
            failed=failed,
            compared_with=self.noise_scope,
            frames=len(self.noise),
            reference=middle,
            spread=spread,
        )

    def blur_rule(self, m: Measures) -> Rule:
        """Hold a frame's focus against the sharp frames of its group.

        The spread is taken from the differences of consecutive frames (as in
        von Neumann's ratio, Ann. Math. Stat. 12, 367, 1941), so that a stack
        through focus, in which most frames are blurred, still has a narrow one.
        """
        s = self.settings
        if not self.focus:
            return _rule("focus-below-run", "blurred", "focus", m.focus, "below", None, False)
        sharp = float(np.quantile(self.focus, _SHARP_QUANTILE))
        jumps = np.abs(np.diff(self.focus))
        spread = _MAD_TO_SIGMA * float(np.median(jumps)) / float(np.sqrt(2))
        limit = sharp - max(s.blur_z * spread, s.blur_drop_octaves)
        return Rule(
            rule="focus-below-run",
            reason="blurred",
            measure="focus",
            value=m.focus,
            side="below",
            threshold=limit,
            failed=_fails_below(m.focus, limit),
            compared_with="group",
            frames=len(self.focus),
            reference=sharp,
            spread=spread,
        )


def _verdict(rules: list[Rule], m: Measures, peers: _Peers, final: bool) -> Verdict:
    s = peers.settings
    rules = [
        *rules,
        peers.noise_rule(m),
        _rule(
            "noise-above-signal", "noisy", "snr", m.snr, "below", s.snr, _fails_below(m.snr, s.snr)
        ),
        peers.blur_rule(m),
        _rule(
            "no-focus",
            "blurred",
            "focus",
            m.focus,
            "below",
            s.focus_octaves,
            _fails_below(m.focus, s.focus_octaves),
        ),
    ]
    failed = [rule.reason for rule in rules if rule.failed] if s.enabled else []
    return Verdict(
        accepted=not failed,
        reasons=tuple(failed[:1]),
        provisional=not final and not peers.warm and not any(r.failed for r in rules[:-4]),
        rules=rules,
    )


def _rule(
    rule: str,
    reason: str,
    measure: str,
    value: float | None,
    side: Literal["above", "below"],
    threshold: float | None,
    failed: bool,
) -> Rule:
    return Rule(
        rule=rule,
        reason=reason,
        measure=measure,
        value=value,
        side=side,
        threshold=threshold,
        failed=failed,
    )


def _fails_above(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def _fails_below(value: float | None, limit: float) -> bool:
    return value is not None and value < limit


def _log2(values: Iterable[float | None]) -> list[float]:
    return [float(np.log2(value)) for value in values if value]
