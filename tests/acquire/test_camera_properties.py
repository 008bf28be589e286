"""Properties are set by their exact names on a real core, read back, and refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from segbatch.acquire.camera.properties import apply, plan
from segbatch.errors import SettingsError
from tests.acquire.cameras import camera_settings, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segbatch.acquire.camera.camera import Camera


@pytest.fixture(scope="module")
def camera() -> Iterator[Camera]:
    """One simulated camera for all tests of this file."""
    with opened(camera_settings()) as camera:
        yield camera


def test_what_is_set_is_read_back(camera: Camera) -> None:
    """Each property is told as it was set and as the camera has it then."""
    told = apply(camera, camera_settings(gain_db=3.0, binning=2, roi_px=(8, 16, 64, 32)))
    facts = camera.facts()

    assert told["Gain"] == {"set": "3", "read_back": "3"}
    assert told["Binning"]["read_back"] == "2"
    assert told["Exposure"] == {"set": "5", "read_back": "5"}
    assert told["ROI"] == {"set": "8, 16, 64, 32", "read_back": "8, 16, 64, 32"}
    assert (facts.width, facts.height, facts.bit_depth) == (64, 32, 10)
    assert (facts.exposure_ms, facts.gain, facts.binning) == (5.0, "3", "2")
    assert apply(camera, camera_settings(binning=1))["ROI"]["read_back"] == "0, 0, 320, 240"


@pytest.mark.parametrize(
    ("changes", "name", "near"),
    [
        ({"trigger_mode": "Software"}, "TriggerMode", "TriggerDevice"),
        ({"hot_pixel_threshold": 3}, "HotPixelThreshold", ""),
        ({"properties": {"PixelTyp": "16bit"}}, "PixelTyp", "PixelType"),
        ({"properties": {"gain": "2"}}, "gain", "Gain"),
        ({"properties": {"EEP": "On"}}, "EEP", "leave camera.properties.EEP out"),
    ],
)
def test_a_property_that_is_not_there_is_refused(
    camera: Camera, changes: dict[str, Any], name: str, near: str
) -> None:
    """The error names the property, what the camera has, and the nearest name."""
    with pytest.raises(SettingsError) as told:
        apply(camera, camera_settings(**changes))

    assert f"no property {name} " in told.value.got
    assert "Binning" in told.value.wanted
    assert near in told.value.remedy


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"properties": {"PixelType": "12bit"}}, "16bit, 32bit"),
        ({"binning": 3}, "1, 2, 4, 8"),
        ({"gain_db": 40.0}, "-5 to 8"),
        ({"exposure_ms": 20000.0}, "0 to 10000"),
        ({"gain_db": 2.5}, "it took"),
        ({"properties": {"CameraName": "mine"}}, "can be set"),
        ({"properties": {"MaximumExposureMs": "5"}}, "before the camera starts"),
        ({"roi_px": (300, 0, 64, 64)}, "320 x 240"),
        ({"roi_px": (0, 0, 64)}, "width and height"),
    ],
)
def test_a_value_that_is_refused_says_what_is_allowed(
    camera: Camera, changes: dict[str, Any], wanted: str
) -> None:
    """A refused value names what the camera takes."""
    apply(camera, camera_settings(binning=1))
    with pytest.raises(SettingsError) as told:
        apply(camera, camera_settings(**changes))

    assert wanted in told.value.wanted


def test_names_are_checked_before_anything_is_set(camera: Camera) -> None:
    """A wrong name among right ones leaves the camera as it was."""
    apply(camera, camera_settings(gain_db=1.0))
    with pytest.raises(SettingsError):
        apply(camera, camera_settings(gain_db=4.0, trigger_mode="Software"))

    assert camera.facts().gain == "1"


def test_a_plan_sets_nothing(camera: Camera) -> None:
    """What would be set is listed with what it is now, and left as it is."""
    apply(camera, camera_settings(gain_db=1.0))
    changes = {change.name: change for change in plan(camera, camera_settings(gain_db=4.0))}

    assert (changes["Gain"].now, changes["Gain"].wanted) == ("1", "4")
    assert changes["Gain"].setting == "camera.gain_db"
    assert camera.facts().gain == "1"
