"""The rules that a frame is held against: fixed ones, and comparisons with its run.

Fixed rules follow from physics and one frame alone. Noise and blur are compared
with the other frames of the run, because a level of noise or a sharpness that is
normal for one specimen is a fault in another; loose fixed limits stand behind
the comparisons, so that a run that is bad throughout is not taken for normal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from segbatch.infer.quality.ranks import median, quantile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from segbatch.infer.quality.measures import Measures
    from segbatch.settings.sections import QualitySettings

# The sharpest tenth of a group stands for what is in focus.
_SHARP_QUANTILE = 0.9
_SHARP_QUANTILE_SIGMAS = 1.2816  # the same of a normal variable
# Noise beyond that of the run up to which a signal-to-noise ratio of ``noise_clear_snr`` is clear,
# and how many times as much is clear whatever the noise: a channel of few frames may need gain.
_CLEAR_OCTAVES, _CLEAR_AT_MOST = 2.0, 2.0
# Frames in focus keep this share of the contrast of the group.
_CONTRAST_KEPT = 0.5
# Sharp frames needed to tell how much the least sharp third of their objects scatters.
_LEAST_SHARP_FRAMES = 5
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
        The value is suspect ``above`` or ``below`` the threshold; None where
        there is nothing to compare with.
    failed
        Whether the frame is rejected for it.
    excused_by
        Why a suspect value was not held against the frame, or None.
    compared_with
        ``frame`` for a fixed threshold, ``group`` or ``run`` for one that follows
        from ``frames`` frames with ``reference`` and ``spread``.
    """

    rule: str
    reason: str
    measure: str
    value: float | None
    side: Literal["above", "below"]
    threshold: float | None
    failed: bool
    excused_by: str | None = None
    compared_with: Literal["frame", "group", "run"] = "frame"
    frames: int | None = None
    reference: float | None = None
    spread: float | None = None


class Peers:
    """Statistics of the frames that a frame is compared with.

    Parameters
    ----------
    group
        Measures of the frames of its group, in the order of the run.
    run
        Of all frames of the run.
    settings
        Thresholds.
    """

    def __init__(
        self, group: Iterable[Measures], run: Iterable[Measures], settings: QualitySettings
    ) -> None:
        needed = settings.warm_up_frames
        members = list(group)
        signal = [m.signal for m in members if m.signal is not None]
        self.signals = len(signal)
        self.signal = median(signal) if len(signal) >= needed else None
        # Rings of large objects far out of focus may look sharper than the objects in focus.
        least = (self.signal or 0.0) / settings.blur_signal_loss
        clear = [m for m in members if m.signal is not None and m.signal >= least]
        self.focus = _focus_level([m.focus for m in clear if m.focus is not None], needed)
        # Octaves by which focus may stay below the sharp frames.
        spread = self.focus.spread if self.focus else 0.0
        drop = max(settings.blur_z * spread, settings.blur_drop_octaves)
        self.focus_drop = min(drop, settings.blur_drop_most_octaves)
        self.least_third = self._third_of_sharp(clear)
        # Noise can be compared across a run; focus, which depends on the specimen, cannot.
        self.noise_scope: Literal["group", "run"] = "group" if len(members) >= needed else "run"
        if self.noise_scope == "run":
            members = list(run)
        self.noise = _noise_level([m.noise_sigma for m in members if m.noise_sigma], needed)
        snr = [m.snr for m in members if m.snr is not None]
        self.snr = median(snr) if snr else 0.0
        self.warm = self.noise is not None and self.focus is not None

    def _third_of_sharp(self, clear: list[Measures]) -> _Level | None:
        """Level of the least sharp third where the median object is sharp.

        Where many frames are out of focus, all of them together scatter too widely.
        """
        if self.focus is None:
            return None
        least = self.focus.reference - self.focus_drop / 2
        third = [
            m.focus_least_third
            for m in clear
            if m.focus is not None and m.focus_least_third is not None and m.focus >= least
        ]
        return _focus_level(third, _LEAST_SHARP_FRAMES)


class _Level(msgspec.Struct, frozen=True):
    """What is normal for some frames: how many they are, a reference and its spread."""

    frames: int
    reference: float
    spread: float


def _noise_level(sigmas: list[float], needed: int) -> _Level | None:
    """Median and median absolute deviation of the noise, octaves."""
    if len(sigmas) < needed:
        return None
    octaves = np.log2(sigmas)
    middle = median(octaves)
    deviation = median(np.abs(octaves - middle))
    return _Level(len(sigmas), middle, _MAD_TO_SIGMA * deviation)


def _focus_level(focus: list[float], needed: int) -> _Level | None:
    """Focus of the sharp frames, and their spread, octaves.

    The spread is the smaller of two: that of consecutive frames (as in von
    Neumann's ratio, Ann. Math. Stat. 12, 367, 1941), which stays small in a stack
    through focus, where most frames are blurred; and that of the sharper half,
    which stays small where blurred frames are strewn among sharp ones.
    """
    if len(focus) < needed:
        return None
    middle, sharp = median(focus), quantile(focus, _SHARP_QUANTILE)
    steps = _MAD_TO_SIGMA * median(np.abs(np.diff(focus))) / 2**0.5
    return _Level(len(focus), sharp, min(steps, (sharp - middle) / _SHARP_QUANTILE_SIGMAS))


def judge_by_rules(m: Measures, repeated: bool, peers: Peers, s: QualitySettings) -> list[Rule]:
    """Hold a frame against every rule, in the order in which reasons are given.

    Parameters
    ----------
    m
        Measures of the frame.
    repeated
        An earlier frame of the run has the same pixels.
    peers
        The frames to compare it with.
    s
        Thresholds.
    """
    without_detail = m.fine_snr is not None and m.fine_snr < s.fine_snr
    blur = [
        _focus_below_run(m, peers),
        _third_below_run(m, peers, s),
        _faded_below_run(m, peers, s, without_detail),
        _limit("no-focus", "blurred", m, "focus", s.focus_octaves),
    ]
    faint = _limit("faint", "underexposed", m, "signal", s.underexposed_signal_counts)
    above = _noise_above_run(m, peers, s)
    noisy = _limit("noise-over-signal", "noisy", m, "snr", s.snr)
    if m.ceiling is None:
        faint = _excuse(faint, "counts without a known ceiling")
    certain = certain_rules(m, repeated, s)
    if any(rule.failed for rule in blur):
        # Neither more light nor less noise would help a frame that is out of focus; light
        # that is spread has itself more noise.
        faint, above, noisy = (_excuse(rule, "out of focus") for rule in (faint, above, noisy))
    elif any(rule.failed for rule in certain[-2:]) and without_detail:
        faint = _excuse(faint, "empty")
    return [
        *certain[:-2],
        faint,
        *certain[-2:],
        above,
        noisy,
        *blur,
    ]


def certain_rules(m: Measures, repeated: bool, s: QualitySettings) -> list[Rule]:
    """Hold a frame against the rules that tell whether it can stand for its run.

    Those of the reasons torn, duplicate, overexposed and empty, in this order.
    """
    torn = Rule(
        rule="zero-tail",
        reason="torn",
        measure="zero_tail_rows",
        value=m.zero_tail_rows,
        side="above",
        threshold=s.torn_zero_rows - 1,
        failed=m.zero_tail_rows >= s.torn_zero_rows,
    )
    rival = s.torn_rival_ratio * (m.tear_rival_fraction or 0.0)
    joined = _limit(
        "joined-exposures",
        "torn",
        m,
        "tear_fraction",
        max(s.torn_columns_fraction, rival),
        side="above",
    )
    step = _limit("level-step", "torn", m, "tear_step_z", s.torn_step_z, side="above")
    same = Rule(
        rule="same-pixels",
        reason="duplicate",
        measure="same_as_earlier",
        value=int(repeated),
        side="above",
        threshold=0,
        failed=repeated,
    )
    if m.minimum == m.maximum:
        # Flat frames are equal whatever was in front of the camera.
        same = _excuse(same, "all pixels are equal")
    saturated = _limit(
        "saturated", "overexposed", m, "saturated_fraction", s.saturated_fraction, side="above"
    )
    objects = _limit(
        "saturated-objects",
        "overexposed",
        m,
        "saturated_bright_fraction",
        s.saturated_bright_fraction,
        side="above",
    )
    if (m.saturated_object_fraction or 0.0) <= s.saturated_object_fraction:
        objects = _excuse(objects, "few objects reach the ceiling")
    nothing = _limit("no-structure", "empty", m, "structure_cells", s.empty_structure_cells)
    if m.structure_cells is None and m.maximum == m.minimum:
        nothing = msgspec.structs.replace(nothing, failed=True)  # too small for cells, and flat
    count = _limit("one-count", "empty", m, "signal", s.empty_signal_counts)
    if m.ceiling is None:
        count = _excuse(count, "counts without a known ceiling")
    return [torn, joined, step, same, saturated, objects, nothing, count]


def _noise_above_run(m: Measures, peers: Peers, s: QualitySettings) -> Rule:
    value = float(np.log2(m.noise_sigma)) if m.noise_sigma else None
    level = peers.noise
    limit = None
    if level is not None:
        limit = level.reference + s.noise_z * max(level.spread, s.noise_spread_octaves)
    rule = Rule(
        rule="noise-above-run",
        reason="noisy",
        measure="log2_noise_sigma",
        value=value,
        side="above",
        threshold=limit,
        failed=value is not None and limit is not None and value > limit,
        compared_with=peers.noise_scope,
        frames=level.frames if level else None,
        reference=level.reference if level else None,
        spread=level.spread if level else None,
    )
    # The more of it there is, the more clearly structure must stand.
    more = 0.0 if value is None or level is None else (value - level.reference) / _CLEAR_OCTAVES
    clear = s.noise_clear_snr * min(max(more, 1.0), _CLEAR_AT_MOST)
    if m.snr is None or m.snr >= max(clear, peers.snr / s.noise_snr_loss):
        return _excuse(rule, "structure stands clear of it")
    return rule


def _focus_below_run(m: Measures, peers: Peers) -> Rule:
    level = peers.focus
    limit = None if level is None else level.reference - peers.focus_drop
    return _sharpness("focus-below-run", "focus", m.focus, level, limit)


def _third_below_run(m: Measures, peers: Peers, s: QualitySettings) -> Rule:
    """Compare the least sharp third of the objects with that of the group's sharp frames.

    A specimen deeper than the depth of field always has something in focus, wherever
    focus is: the median object hardly tells, those farthest from focus do. A few
    objects adrift are no blur, so the median must have fallen by half its own limit,
    or contrast be lost.
    """
    level, value = peers.least_third, m.focus_least_third
    limit = None
    if level is not None:
        limit = level.reference - max(s.blur_third_z * level.spread, s.blur_third_drop_octaves)
    rule = _sharpness("third-below-run", "focus_least_third", value, level, limit)
    if peers.focus is None or m.focus is None:
        return rule
    sharp = m.focus >= peers.focus.reference - peers.focus_drop / 2
    if sharp and (m.signal or 0.0) >= _CONTRAST_KEPT * (peers.signal or 0.0):
        return _excuse(rule, "the median object is sharp")
    return rule


def _sharpness(
    rule: str, measure: str, value: float | None, level: _Level | None, limit: float | None
) -> Rule:
    return Rule(
        rule=rule,
        reason="blurred",
        measure=measure,
        value=value,
        side="below",
        threshold=limit,
        failed=value is not None and limit is not None and value < limit,
        compared_with="group",
        frames=level.frames if level else None,
        reference=level.reference if level else None,
        spread=level.spread if level else None,
    )


def _faded_below_run(m: Measures, peers: Peers, s: QualitySettings, without_detail: bool) -> Rule:
    """Compare contrast with the group's, where focus cannot be told by fine detail.

    There is none left, or it is that of the rings about large objects out of focus.
    """
    limit = None if peers.signal is None else peers.signal / s.blur_signal_loss
    rule = Rule(
        rule="faded-below-run",
        reason="blurred",
        measure="signal",
        value=m.signal,
        side="below",
        threshold=limit,
        failed=limit is not None and m.signal is not None and m.signal < limit,
        compared_with="group",
        frames=peers.signals,
        reference=peers.signal,
    )
    if without_detail or (peers.focus is not None and _sharper(m, peers.focus, peers.focus_drop)):
        return rule
    return _excuse(rule, "fine detail is left")


def _sharper(m: Measures, level: _Level, drop: float) -> bool:
    return m.focus is not None and m.focus > level.reference + drop


def _limit(
    rule: str,
    reason: str,
    m: Measures,
    measure: str,
    threshold: float,
    side: Literal["above", "below"] = "below",
) -> Rule:
    """Apply a fixed threshold to one measure; a measure that is None never fails."""
    value = getattr(m, measure)
    failed = value is not None and (value > threshold if side == "above" else value < threshold)
    return Rule(
        rule=rule,
        reason=reason,
        measure=measure,
        value=value,
        side=side,
        threshold=threshold,
        failed=failed,
    )


def _excuse(rule: Rule, why: str) -> Rule:
    return msgspec.structs.replace(rule, failed=False, excused_by=why) if rule.failed else rule
