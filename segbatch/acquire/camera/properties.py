"""The camera's properties: set by their exact names, read back, refused by name.

Names are those of Micro-Manager's adapters; of the Zelux (``TSI/TSICam``):
mmCoreAndDevices, DeviceAdapters/TSI/TSI3Cam.cpp.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segbatch.errors import SettingsError
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.acquire.camera.camera import Camera
    from segbatch.settings.sections import CameraSettings

EXPOSURE = "Exposure"
ROI = "ROI"
# A camera rounds to its own steps: of exposure, of gain, of even rows.
_STEP, _RELATIVE_STEP, _ROI_STEP_PX = 0.1, 0.05, 16
_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """One property to set: who asked for it, what it is now, what it shall be."""

    name: str
    setting: str
    now: str
    wanted: str


@dataclass(frozen=True, slots=True)
class _Known:
    value: str
    read_only: bool
    pre_init: bool
    allowed: tuple[str, ...]
    limits: tuple[float, float] | None


def plan(camera: Camera, settings: CameraSettings) -> list[Change]:
    """Return what the settings would set, in order; nothing is set.

    Raises
    ------
    SettingsError
        The camera has no such property, or it cannot be written.
    """
    known = _names(camera)
    changes = []
    for name, setting, wanted in _wanted(settings):
        if name == EXPOSURE:
            changes.append(Change(name, setting, f"{_exposure(camera):g}", wanted))
            continue
        if name not in known:
            raise _unknown(camera.label, name, setting, known)
        found = _look(camera, name)
        if found.read_only:
            raise SettingsError(
                f"property {name} of camera {camera.label} can only be read (it is {found.value})",
                "a property that can be set",
                f"leave {setting} out",
            )
        changes.append(Change(name, setting, found.value, wanted))
    roi = ", ".join(map(str, settings.roi_px)) or "whole sensor"
    now = ", ".join(map(str, _roi(camera)))
    changes.append(Change(ROI, "camera.roi_px", now, roi))
    return changes


def apply(camera: Camera, settings: CameraSettings) -> dict[str, dict[str, str]]:
    """Set what the settings ask for; return each property as set and as read back.

    All names are checked before the first is set.

    Raises
    ------
    SettingsError
        The camera has no such property, or does not take the value.
    """
    told = {}
    for change in plan(camera, settings):
        if change.name == ROI:
            read_back = _set_roi(camera, settings)
        elif change.name == EXPOSURE:
            read_back = _set_exposure(camera, change)
        else:
            read_back = _set(camera, change)
        told[change.name] = {"set": change.wanted, "read_back": read_back}
    # Setting one may move another: what counts is what stands in the end.
    for name, each in told.items():
        if name not in (ROI, EXPOSURE):
            each["read_back"] = _look(camera, name).value
    return told


def _wanted(settings: CameraSettings) -> list[tuple[str, str, str]]:
    """Return (property, setting, value): the user's own first, exposure last."""
    wanted = [
        (name, f"camera.properties.{name}", str(value))
        for name, value in settings.properties.items()
    ]
    if settings.binning is not None:
        wanted.append(("Binning", "camera.binning", str(settings.binning)))
    if settings.trigger_mode:
        wanted.append(("TriggerMode", "camera.trigger_mode", settings.trigger_mode))
    if settings.hot_pixel_threshold is not None:
        setting = "camera.hot_pixel_threshold"
        wanted.append(("HotPixelThreshold", setting, str(settings.hot_pixel_threshold)))
        wanted.append(("HotPixel", setting, "On"))
    if settings.gain_db is not None:
        wanted.append(("Gain", "camera.gain_db", f"{settings.gain_db:g}"))
    if settings.exposure_ms is not None:
        wanted.append((EXPOSURE, "camera.exposure_ms", f"{settings.exposure_ms:g}"))
    return wanted


def _names(camera: Camera) -> list[str]:
    core = camera.core
    return camera.calls.ask(
        "listing properties",
        lambda: core.texts(core.api.getDevicePropertyNames(camera.label)),
    )


def _look(camera: Camera, name: str) -> _Known:
    core, label = camera.core, camera.label

    def ask() -> _Known:
        api = core.api
        limits = None
        if api.hasPropertyLimits(label, name):
            limits = (
                float(api.getPropertyLowerLimit(label, name)),
                float(api.getPropertyUpperLimit(label, name)),
            )
        return _Known(
            value=str(api.getProperty(label, name)),
            read_only=bool(api.isPropertyReadOnly(label, name)),
            pre_init=bool(api.isPropertyPreInit(label, name)),
            allowed=tuple(core.texts(api.getAllowedPropertyValues(label, name))),
            limits=limits,
        )

    return camera.calls.ask(f"reading property {name}", ask)


def _set(camera: Camera, change: Change) -> str:
    name, wanted = change.name, change.wanted
    before = _look(camera, name)
    if name == "Binning" and wanted not in before.allowed and before.allowed:
        wanted = next((v for v in before.allowed if v == f"{wanted}x{wanted}"), wanted)
    if before.allowed and wanted not in before.allowed:
        near = difflib.get_close_matches(wanted, before.allowed, n=1, cutoff=0.5)
        raise _refused(camera.label, change, f"one of {', '.join(before.allowed)}", near)
    _require_within(camera.label, change, before.limits)
    if before.pre_init:
        if not _same(wanted, before.value):
            raise _refused(
                camera.label,
                change,
                f"{before.value}, for it is only set before the camera starts",
                [],
            )
        return before.value
    core, label = camera.core, camera.label
    camera.calls.ask(
        f"setting property {name} to {wanted}", lambda: core.api.setProperty(label, name, wanted)
    )
    after = _look(camera, name).value
    if not _same(wanted, after):
        raise _refused(camera.label, change, f"a value that it keeps (it took {after})", [])
    _tell_rounding(change, after)
    return after


def _set_exposure(camera: Camera, change: Change) -> str:
    if EXPOSURE in _names(camera):
        _require_within(camera.label, change, _look(camera, EXPOSURE).limits)
    wanted = float(change.wanted)
    api, label = camera.core.api, camera.label
    camera.calls.ask(f"setting exposure to {wanted:g} ms", lambda: api.setExposure(label, wanted))
    after = f"{_exposure(camera):g}"
    if not abs(float(after) - wanted) <= max(0.05, _RELATIVE_STEP * wanted):
        raise _refused(camera.label, change, f"a time that it keeps (it took {after} ms)", [])
    _tell_rounding(change, after)
    return after


def _set_roi(camera: Camera, settings: CameraSettings) -> str:
    core, label, roi = camera.core, camera.label, settings.roi_px
    if not roi:
        camera.calls.ask("clearing the ROI", core.api.clearROI)
        return ", ".join(map(str, _roi(camera)))
    if len(roi) != 4:
        raise SettingsError(f"camera.roi_px = {list(roi)}", "x, y, width and height in pixels")
    camera.calls.ask("clearing the ROI", core.api.clearROI)
    whole = _roi(camera)
    x, y, width, height = roi
    inside = 0 <= x < x + width <= whole[2] and 0 <= y < y + height <= whole[3]
    if not inside:
        raise SettingsError(
            f"camera.roi_px = {list(roi)}",
            f"inside the {whole[2]} x {whole[3]} pixels of camera {label}",
            "x, y, width and height, in pixels after binning",
        )
    camera.calls.ask("setting the ROI", lambda: core.api.setROI(label, x, y, width, height))
    after = _roi(camera)
    if any(abs(got - asked) > _ROI_STEP_PX for got, asked in zip(after, roi, strict=True)):
        raise SettingsError(
            f"camera {label} took the ROI {list(after)} for camera.roi_px = {list(roi)}",
            "a ROI in the camera's steps",
            "choose one of the steps that the camera offers",
        )
    if after != tuple(roi):
        _logger.warning("camera rounded the ROI", asked=list(roi), got=list(after))
    return ", ".join(map(str, after))


def _exposure(camera: Camera) -> float:
    return camera.calls.ask(
        "reading exposure", lambda: float(camera.core.api.getExposure(camera.label))
    )


def _roi(camera: Camera) -> tuple[int, int, int, int]:
    return camera.calls.ask("reading the ROI", lambda: camera.core.roi(camera.label))


def _require_within(label: str, change: Change, limits: tuple[float, float] | None) -> None:
    number = _number(change.wanted)
    if limits and number is not None and not limits[0] <= number <= limits[1]:
        raise _refused(label, change, f"{limits[0]:g} to {limits[1]:g}", [])


def _same(wanted: str, got: str) -> bool:
    first, second = _number(wanted), _number(got)
    if first is None or second is None:
        return wanted == got
    return abs(first - second) <= max(_STEP, _RELATIVE_STEP * abs(first))


def _tell_rounding(change: Change, after: str) -> None:
    first, second = _number(change.wanted), _number(after)
    if first is not None and second is not None and abs(first - second) > 1e-3 * abs(first):
        _logger.warning(
            "camera rounded a property", property=change.name, asked=change.wanted, got=after
        )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _unknown(label: str, name: str, setting: str, known: list[str]) -> SettingsError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return SettingsError(
        f"camera {label} has no property {name} ({setting})",
        f"one that it has: {', '.join(known)}",
        f"did you mean {near[0]}?" if near else f"leave {setting} out",
    )


def _refused(label: str, change: Change, wanted: str, near: list[str]) -> SettingsError:
    return SettingsError(
        f"camera {label} refuses {change.name} = {change.wanted} ({change.setting})",
        wanted,
        f"did you mean {near[0]}?" if near else f"change {change.setting}",
    )
