"""What a verdict promises."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from segbatch.infer.quality import Judge, Measures, Verdict, measure
from segbatch.settings.sections import QualitySettings
from tests.quality.frames import CEILING, beads, finish, texture

if TYPE_CHECKING:
    from numpy.typing import NDArray


def judge_alone(frame: NDArray[Any], ceiling: int | None = CEILING) -> Verdict:
    """Verdict on a frame that is a run of its own."""
    return Judge(QualitySettings()).judge(0, measure(frame, ceiling), "", None)


def settle(frames: list[NDArray[Any]]) -> list[tuple[str, ...]]:
    """Reasons given to the frames of one run."""
    judge = Judge(QualitySettings())
    for key, frame in enumerate(frames):
        judge.judge(key, measure(frame, CEILING), hashlib.sha256(frame).hexdigest(), "")
    return [verdict.reasons for verdict in judge.settle().values()]


def good(count: int = 14) -> list[NDArray[np.uint16]]:
    """Good frames of one run."""
    return [beads(100 + i) for i in range(count)]


def joined() -> NDArray[np.uint16]:
    """Join two exposures in a frame."""
    frame = beads(1)
    frame[200:] = beads(2, background=50)[200:]
    return frame


def unfinished() -> NDArray[np.uint16]:
    """Leave the last rows of a frame unwritten."""
    frame = beads(1)
    frame[-40:] = 0
    return frame


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (beads(1), None),
        (texture(1), None),
        (beads(1, count=3), None),
        (beads(1, hot_pixels=30), None),
        (unfinished(), "torn"),
        (joined(), "torn"),
        (beads(1, peak=9000, background=200), "overexposed"),
        (np.full((300, 300), CEILING, np.uint16), "overexposed"),
        (beads(1, peak=3, noise=0.4), "underexposed"),
        (beads(1, count=0), "empty"),
        (beads(1, count=0, hot_pixels=60), "empty"),
        (np.zeros((300, 300), np.uint16), "empty"),
        (beads(1, count=200, blur_px=12, noise=0.5), "blurred"),
    ],
)
def test_physics_alone_decides(frame: NDArray[Any], reason: str | None) -> None:
    """What one frame shows by itself is decided without a run to compare with."""
    assert judge_alone(frame).reasons == (() if reason is None else (reason,))


def test_a_frame_is_compared_with_its_run() -> None:
    """A noisy and a mildly blurred frame are rejected among good ones, and only they."""
    frames = good()
    frames[5:5] = [beads(50, noise=60)]
    frames[9:9] = [beads(51, blur_px=3)]
    found = settle(frames)
    assert found[5] == ("noisy",)
    assert found[9] == ("blurred",)
    assert [i for i, reasons in enumerate(found) if reasons] == [5, 9]


def test_a_run_of_mixed_light_and_density_is_accepted() -> None:
    """Good frames that differ in brightness and density accept each other."""
    frames = [
        beads(i, count=count, peak=peak)
        for i, (count, peak) in enumerate((c, p) for c in (4, 30, 120, 400) for p in (60, 200, 500))
    ]
    assert settle(frames) == [()] * len(frames)


def test_a_stack_through_focus_keeps_its_sharp_frames() -> None:
    """Where most frames are blurred, the sharp ones set the standard."""
    blurs = [abs(i - 12) * 0.6 for i in range(25)]
    found = settle([beads(7, blur_px=blur, noise=1 + 0.001 * i) for i, blur in enumerate(blurs)])
    assert [i for i, reasons in enumerate(found) if not reasons and abs(i - 12) > 6] == []
    assert all(not found[i] for i in (11, 12, 13))


def test_a_specimen_of_several_depths_is_blurred_when_focus_leaves_it() -> None:
    """A frame is blurred in which one depth is sharp and the others lost more than usual."""

    def strips(seed: int, blurs: tuple[float, float, float]) -> NDArray[np.uint16]:
        parts = [
            beads(3 * seed + i, blur_px=blur, count=60, shape=(160, 520), noise=1)
            for i, blur in enumerate(blurs)
        ]
        return np.concatenate(parts)

    frames = [strips(i, (1.2, 0.6, 1.2)) for i in range(12)]
    frames[6:6] = [strips(50, (0.6, 1.8, 3.2))]
    judge = Judge(QualitySettings())
    for key, frame in enumerate(frames):
        judge.judge(key, measure(frame, CEILING), str(key), "")
    verdicts = list(judge.settle().values())
    assert [i for i, verdict in enumerate(verdicts) if not verdict.accepted] == [6]
    assert [rule.rule for rule in verdicts[6].rules if rule.failed] == ["third-below-run"]


def test_a_few_objects_adrift_are_no_blur() -> None:
    """Where most objects are as sharp as in the run, a blurred third is excused and recorded."""
    frames = good()
    adrift = np.maximum(beads(70), beads(71, count=8, blur_px=4, peak=900))
    frames[6:6] = [adrift]
    judge = Judge(QualitySettings())
    for key, frame in enumerate(frames):
        judge.judge(key, measure(frame, CEILING), str(key), "")
    verdict = judge.settle()[6]
    rules = {rule.rule: rule for rule in verdict.rules}
    assert verdict.accepted
    assert rules["third-below-run"].excused_by == "the median object is sharp"


def judge_measures(run: list[Measures]) -> list[Verdict]:
    """Verdicts on the frames of one run, given by their measures."""
    judge = Judge(QualitySettings())
    for key, measures in enumerate(run):
        judge.judge(key, measures, str(key), "")
    return list(judge.settle().values())


def changed(
    frame: Measures, *, focus: float = 0, third: float = 0, signal: float = 1, noise: float = 1
) -> Measures:
    """Add octaves to both measures of focus, and multiply contrast and noise."""
    assert frame.focus is not None
    assert frame.focus_least_third is not None
    assert frame.signal is not None
    assert frame.noise_sigma is not None
    return msgspec.structs.replace(
        frame,
        focus=frame.focus + focus,
        focus_least_third=frame.focus_least_third + third,
        signal=frame.signal * signal,
        noise_sigma=frame.noise_sigma * noise,
        snr=frame.signal * signal / (frame.noise_sigma * noise),
    )


def test_rings_out_of_focus_do_not_set_the_standard() -> None:
    """Frames without contrast that look sharper than the others are blurred, and only they."""
    run = [measure(frame, CEILING) for frame in good(14)]
    run[3:3] = [changed(run[0], focus=2.5, third=2.5, signal=0.1) for _ in range(3)]
    found = [verdict.reasons for verdict in judge_measures(run)]
    assert [i for i, reasons in enumerate(found) if reasons] == [3, 4, 5]
    assert found[3] == ("blurred",)


@pytest.mark.parametrize("seed", range(4))
def test_two_fifths_of_a_run_out_of_focus_do_not_hide_the_blur_of_one_depth(seed: int) -> None:
    """What is normal for the least sharp third is told by the frames in focus alone."""
    sharp_um, blurred_um = [0.0, 0.1, 0.2, 0.3] * 3, [0.6, 0.65] * 4
    depths_um = np.random.default_rng(seed).permutation(sharp_um + blurred_um)
    frame = measure(beads(1), CEILING)
    # Defocus takes with its square; of a specimen deeper than the depth of field some is in focus.
    run = [changed(frame, focus=-1.6 * d**2, third=-3.3 * d**2) for d in depths_um.tolist()]
    found = [verdict.accepted for verdict in judge_measures(run)]
    assert found == [d < 0.5 for d in depths_um]


@pytest.mark.parametrize(
    ("noise", "snr", "noisy"),
    [(1.0, 16, False), (3.5, 16, False), (12.0, 16, True), (12.0, 23, False), (64.0, 25, False)],
)
def test_the_noisier_a_frame_is_the_clearer_its_structure_must_stand(
    noise: float, snr: float, noisy: bool
) -> None:
    """What is clear in a little noise is not in much, but twice as much is clear in any."""
    run = [measure(frame, CEILING) for frame in good(12)]
    run = [changed(m, signal=50 * (m.noise_sigma or 0) / (m.signal or 1)) for m in run]
    run.append(changed(run[0], noise=noise, signal=noise * snr / 50))
    verdict = judge_measures(run)[-1]
    assert verdict.reasons == (("noisy",) if noisy else ())


def test_noise_of_light_that_is_spread_is_called_blur() -> None:
    """A frame out of focus is called blurred, though the light it spreads has more noise."""
    run = [measure(frame, CEILING) for frame in good(12)]
    run.append(changed(run[0], focus=-4, third=-4, signal=0.1, noise=2))
    verdict = judge_measures(run)[-1]
    rules = {rule.rule: rule for rule in verdict.rules}
    assert verdict.reasons == ("blurred",)
    assert rules["noise-above-run"].excused_by == "out of focus"


def test_a_run_that_is_blurred_throughout_is_not_taken_for_normal() -> None:
    """The fixed limit rejects frames that are all equally far out of focus."""
    found = settle([beads(i, count=200, blur_px=12, noise=0.5) for i in range(12)])
    assert found == [("blurred",)] * 12


def test_the_first_of_equal_frames_is_kept() -> None:
    """Later frames with the same pixels are duplicates, in the order of the keys."""
    frames = good(4)
    frames.append(frames[1].copy())
    assert settle(frames) == [(), (), (), (), ("duplicate",)]


def test_equal_flat_frames_are_empty_and_no_duplicates() -> None:
    """Frames without a single difference between pixels say nothing about repetition."""
    assert settle([np.zeros((80, 80), np.uint16)] * 2) == [("empty",)] * 2


def test_settling_does_not_depend_on_the_order_of_judging() -> None:
    """The final verdicts follow from the frames, whatever the order and the interruptions."""
    frames = [*good(12), beads(60, blur_px=4), beads(61, count=0), beads(62, noise=60)]
    frames.append(frames[3].copy())
    facts = [(i, measure(f, CEILING), hashlib.sha256(f).hexdigest()) for i, f in enumerate(frames)]
    verdicts = []
    for seed in range(4):
        judge = Judge(QualitySettings())
        order = np.random.default_rng(seed).permutation(len(facts)) if seed else range(len(facts))
        for key, measures, pixel_hash in (facts[i] for i in order):
            # What an interrupted run wrote is read back from JSON.
            restored = msgspec.json.decode(msgspec.json.encode(measures), type=Measures)
            judge.judge(key, restored, pixel_hash, "beads")
        verdicts.append(judge.settle())
    assert list(verdicts[0]) == list(range(len(frames)))
    assert all(other == verdicts[0] for other in verdicts[1:])
    assert all(list(other) == list(verdicts[0]) for other in verdicts[1:])


def test_verdicts_are_provisional_while_warming_up() -> None:
    """Until ten frames are known an accepted frame is provisional; a settled one never is."""
    judge = Judge(QualitySettings())
    given = [judge.judge(i, measure(f, CEILING), str(i), "") for i, f in enumerate(good(12))]
    assert [verdict.provisional for verdict in given] == [True] * 9 + [False] * 3
    torn = judge.judge(99, measure(unfinished(), CEILING), "torn", "another group")
    assert (torn.provisional, torn.reasons) == (False, ("torn",))
    assert not any(verdict.provisional for verdict in judge.settle().values())


def test_groups_are_judged_apart() -> None:
    """A channel that is less sharp than another is not blurred for that."""
    judge = Judge(QualitySettings())
    for i in range(24):
        frame = beads(i, blur_px=3.0 * (i % 2), count=80)
        judge.judge(i, measure(frame, CEILING), str(i), ("GFP", "DAPI")[i % 2])
    assert all(verdict.accepted for verdict in judge.settle().values())


def test_every_rule_is_recorded() -> None:
    """A verdict names each rule with its value and threshold, also where an earlier one failed."""
    verdict = judge_alone(unfinished())
    names = [rule.rule for rule in verdict.rules]
    assert len(names) == len(set(names)) == 15
    order = ["torn", "duplicate", "overexposed", "underexposed", "empty", "noisy", "blurred"]
    assert list(dict.fromkeys(rule.reason for rule in verdict.rules)) == order
    failed = [rule for rule in verdict.rules if rule.failed]
    assert failed[0].value == 40
    assert failed[0].threshold is not None
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict


def test_judging_can_be_switched_off() -> None:
    """Without judging every frame is accepted, and the measures still stand in the rules."""
    verdict = Judge(QualitySettings(enabled=False)).judge(0, measure(unfinished(), CEILING), "", "")
    assert verdict.accepted
    assert verdict.rules


def test_thresholds_come_from_the_settings() -> None:
    """A changed setting changes the verdict."""
    frame = measure(beads(1), CEILING)
    strict = QualitySettings(focus_octaves=50)
    assert Judge(strict).judge(0, frame, "", "").reasons == ("blurred",)


def test_bright_dust_does_not_make_a_frame_overexposed() -> None:
    """One saturated speck among well-exposed beads is forgiven."""
    frame = beads(1, count=80).astype(float)
    frame[50:62, 70:82] = CEILING
    assert judge_alone(finish(frame)).accepted
