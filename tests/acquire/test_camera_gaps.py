"""Frames that are missing are told from frames that are late by their time stamps alone."""

from __future__ import annotations

import numpy as np
import pytest

from segbatch.acquire.camera.gaps import Gap, GapWatch

PERIOD_MS = 28.7


def watched(stamps: list[float]) -> tuple[list[Gap], GapWatch]:
    """Return the gaps that a watch finds in ``stamps``."""
    watch = GapWatch()
    found = [gap for stamp in stamps for gap in watch.add(stamp)]
    return found + watch.finish(), watch


@pytest.mark.parametrize("seed", range(5))
def test_jitter_is_no_loss(seed: int) -> None:
    """Images that are stamped up to half a period late, each for itself, are not missing."""
    late = np.random.default_rng(seed)
    stamps = [PERIOD_MS * (i + late.uniform(0, 0.49)) for i in range(2000)]

    found, watch = watched(stamps)

    assert found == []
    assert watch.period_ms == pytest.approx(PERIOD_MS, rel=0.05)


def test_a_burst_after_a_pause_is_no_loss() -> None:
    """Where the host sleeps and the images catch up, nothing is missing."""
    stamps = [PERIOD_MS * i for i in range(100)]
    stamps += [PERIOD_MS * 103 + 2 * i for i in range(4)]  # 100 to 103, three periods late
    stamps += [PERIOD_MS * i for i in range(104, 200)]

    assert watched(stamps)[0] == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lost", [{50}, {50, 51, 52}, {40, 42, 44}, {2}, {7, 60, 61, 120, 198}])
def test_every_lost_image_is_counted(seed: int, lost: set[int]) -> None:
    """As many images are counted as are missing, through jitter, at the place of the hole."""
    late = np.random.default_rng(seed)
    kept = [i for i in range(200) if i not in lost]
    found, _ = watched([PERIOD_MS * (i + late.uniform(0, 0.2)) for i in kept])

    assert sum(gap.dropped for gap in found) == len(lost)
    assert found[0].before == min(lost)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("slip", [0.3, 0.6, 0.75])
def test_a_clock_that_stood_still_is_no_loss(seed: int, slip: float) -> None:
    """Images that stay late by a part of a period are not missing; a lost one leaves a whole."""
    late = np.random.default_rng(seed)
    stamps = [PERIOD_MS * (i + late.uniform(0, 0.1) + slip * (i >= 140)) for i in range(200)]

    assert watched(stamps)[0] == []


@pytest.mark.parametrize("seed", range(5))
def test_one_lost_image_is_counted_through_jitter(seed: int) -> None:
    """A single image that is missing is counted, whatever images around it are stamped late."""
    late = np.random.default_rng(seed)
    for lost in range(40, 190, 5):
        kept = [i for i in range(200) if i != lost]
        found, _ = watched([PERIOD_MS * (i + late.uniform(0, 0.2)) for i in kept])
        assert [(gap.before, gap.dropped) for gap in found] == [(lost, 1)]


def test_a_hole_at_the_end_counts() -> None:
    """A hole right before the last image is counted when the run ends."""
    stamps = [PERIOD_MS * i for i in range(50)] + [PERIOD_MS * 52]

    assert [gap.dropped for gap in watched(stamps)[0]] == [2]


def test_a_camera_that_slows_down_is_followed() -> None:
    """A period that grows by a third in the middle of a run is not taken for a loss."""
    stamps = [PERIOD_MS * i for i in range(300)]
    for _ in range(300):
        stamps.append(stamps[-1] + 1.35 * PERIOD_MS)

    found, watch = watched(stamps)

    assert found == []
    assert watch.period_ms == pytest.approx(1.35 * PERIOD_MS)


def test_nothing_is_said_of_few_or_equal_stamps() -> None:
    """Two images, or stamps that stand still, give no period and no loss."""
    assert watched([0.0, 500.0])[0] == []
    assert watched([7.0] * 50)[0] == []
