"""Which scenes a run is made of: the good one, the spoiled ones, and every one a lab may have."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from segbatch.acquire.simulate import camera
from segbatch.acquire.simulate.optics import PIXEL_PITCH_UM, STAMP_SIZES_PX, Optics, stamp_size_px
from segbatch.acquire.simulate.scene import Scene

BAD_KINDS = (
    "empty",
    "noisy",
    "overexposed",
    "underexposed",
    "blurred",
    "duplicate",
    "torn",
)
KINDS = ("good", *BAD_KINDS)
GOOD_FRACTION = 0.7

# Objectives that a bead lab has on its turret: magnification, NA, index of the medium.
_OBJECTIVES = (
    (10, 0.30, 1.0),
    (20, 0.50, 1.0),
    (20, 0.70, 1.0),
    (40, 0.60, 1.0),
    (40, 0.75, 1.0),
    (60, 0.85, 1.0),
    (60, 1.20, 1.33),
    (100, 1.30, 1.515),
)
# Emission peaks of common bead dyes: blue-green, green, orange, crimson, um.
_EMISSIONS_UM = (0.470, 0.515, 0.560, 0.605, 0.645)


def kinds_of_run(frames: int, rng: np.random.Generator) -> list[str]:
    """Kind of each frame: at least ``GOOD_FRACTION`` good, the others evenly mixed.

    The first frame is good, and a duplicate always follows a good frame, which
    it repeats.
    """
    bad = int(frames * (1 - GOOD_FRACTION) + 1e-9)
    spoiled = [BAD_KINDS[i % len(BAD_KINDS)] for i in range(bad)]
    kinds = ["good"] * (frames - bad)
    # Each bad frame goes behind its own good one, so that every kind meets its like-for-like.
    slots = rng.permutation(len(kinds))[:bad]
    after = dict(zip(slots.tolist(), rng.permutation(spoiled).tolist(), strict=True))
    mixed: list[str] = []
    for i, kind in enumerate(kinds):
        mixed.append(kind)
        if i in after:
            mixed.append(after[i])
    return mixed


def scene_of_run(rng: np.random.Generator, height_px: int, width_px: int) -> Scene:
    """Scene of a run's good frames: one slide, one objective, one exposure."""
    return Scene(
        height_px=height_px,
        width_px=width_px,
        beads_per_megapixel=float(rng.uniform(120, 260)),
        bead_diameter_um=float(rng.uniform(1.6, 2.6)),
        bead_peak_electrons=float(rng.uniform(4500, 6500)),
        background_electrons=float(rng.uniform(120, 260)),
        gradient_angle_deg=float(rng.uniform(0, 360)),
    )


def spoil(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    """Scene of a frame of ``kind`` in a run whose good frames show ``scene``.

    ``duplicate`` and ``torn`` are faults of the transfer, not of the scene.
    """
    if kind == "empty":
        return replace(scene, beads_per_megapixel=0.0)
    if kind == "noisy":  # a hundredth of the light, amplified until it shows
        factor = float(rng.uniform(0.008, 0.014))
        return replace(dim(scene, factor), gain_db=float(rng.uniform(34, 38)))
    if kind == "overexposed":
        return dim(scene, float(rng.uniform(20, 45)))
    if kind == "underexposed":
        return dim(scene, float(rng.uniform(0.002, 0.006)))
    if kind == "blurred":
        depths = rng.uniform(6, 10) * scene.optics.depth_of_field_um
        return replace(scene, stage_defocus_um=float(depths * rng.choice((-1, 1))))
    return scene


def dim(scene: Scene, factor: float) -> Scene:
    """Give ``scene`` the light of an exposure ``factor`` times as long."""
    return replace(
        scene,
        bead_peak_electrons=scene.bead_peak_electrons * factor,
        background_electrons=scene.background_electrons * factor,
        haze_electrons=scene.haze_electrons * factor,
        hot_pixel_electrons=scene.hot_pixel_electrons * factor,
        exposure_ms=max(scene.exposure_ms * factor, 0.04),
    )


def any_scene(rng: np.random.Generator, height_px: int, width_px: int) -> Scene:
    """Any scene a bead lab may point the camera at; what a network should have seen.

    Objectives from 10x to 100x, bead images from the diffraction limit to about
    24 px, densities over three decades, peaks from 200 to 13,000 electrons, gain
    up to 24 dB, one frame in five out of focus, one in sixteen without beads.
    """
    magnification, aperture, index = _OBJECTIVES[int(rng.integers(len(_OBJECTIVES)))]
    shortest = PIXEL_PITCH_UM / magnification * 4 * aperture
    emissions = [e for e in _EMISSIONS_UM if e >= shortest]
    optics = Optics(
        magnification=magnification,
        numerical_aperture=aperture,
        medium_index=index,
        wavelength_um=float(rng.choice(emissions)),
        spherical_rms_waves=float(rng.normal(0, 0.07)),
        coma_rms_waves=float(rng.normal(0, 0.05)),
        astigmatism_rms_waves=float(rng.normal(0, 0.03)),
    )
    diameter = _log_uniform(rng, 0.1 + 0.5 * optics.pixel_um, 24 * optics.pixel_um)
    peak, background, gain_db = _any_light(rng)
    dof = optics.depth_of_field_um
    area_px = math.pi / 4 * ((diameter / optics.pixel_um) ** 2 + 16)
    densest = min(2500.0, 0.2e6 / area_px)
    beads = 0.0 if rng.random() < 1 / 16 else _log_uniform(rng, 15, densest)
    defocus = rng.normal(0, 0.25) if rng.random() < 0.8 else _log_uniform(rng, 0.7, 12)
    return Scene(
        height_px=height_px,
        width_px=width_px,
        optics=optics,
        beads_per_megapixel=beads,
        bead_diameter_um=diameter,
        bead_diameter_cv=float(rng.uniform(0.01, 0.15)),
        bead_peak_electrons=peak,
        brightness_cv=float(rng.uniform(0.05, 0.3)),
        clumped_fraction=float(rng.uniform(0, 0.5)),
        stage_defocus_um=float(defocus * dof * rng.choice((-1, 1))),
        depth_spread_um=float(rng.uniform(0, 0.5)) * dof,
        floating_fraction=float(rng.choice((0.0, rng.uniform(0, 0.3)))),
        floating_depth_um=_deepest_um(optics, diameter),
        background_electrons=background,
        gradient_fraction=float(rng.uniform(0, 0.5)),
        gradient_angle_deg=float(rng.uniform(0, 360)),
        haze_electrons=background * float(rng.uniform(0, 0.4)),
        vignette_fraction=float(rng.uniform(0, 0.3)),
        hot_pixels_per_megapixel=float(rng.choice((0.0, 5.0, 60.0))),
        hot_pixel_electrons=_log_uniform(rng, 50, 3000),
        gain_db=gain_db,
        black_level_counts=float(rng.uniform(1, 24)),
        sensor_seed=int(rng.integers(2**31)),
    )


def _any_light(rng: np.random.Generator) -> tuple[float, float, float]:
    """Peak and background (electrons) and gain (dB) of a frame whose beads can be seen.

    The peak stands twenty standard deviations of the background's noise above it,
    or more, and is read as 25 to 1200 counts (1023 is the ceiling).
    """
    gain_db = float(rng.choice((0.0, rng.uniform(0, 24))))
    amplification = 10 ** (gain_db / 20) / camera.ELECTRONS_PER_COUNT
    peak = _log_uniform(rng, 25, 1200) / amplification
    peak = max(peak, 200.0)
    most = min((peak / 20) ** 2, 2 * peak, 400 / amplification)
    background = _log_uniform(rng, 2, max(most, 4))
    return peak, background, gain_db


def _deepest_um(optics: Optics, diameter_um: float) -> float:
    """Twelve depths of field, or less where the image of a bead would outgrow its stamp."""
    depth = 12 * optics.depth_of_field_um
    while stamp_size_px(optics, diameter_um, depth) == STAMP_SIZES_PX[-1]:
        depth /= 1.25
    return depth


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))
