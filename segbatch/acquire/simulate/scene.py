"""What is in front of the camera, and the frame that the camera makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np

from segbatch.acquire.simulate import camera
from segbatch.acquire.simulate.optics import Optics, bead_images, focus_peak, stamp_size_px

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A bead whose peak has fallen below this fraction of its peak in focus is out of focus.
IN_FOCUS_PEAK_FRACTION = 1 / 3
_MARGIN_PX = 48
_HAZE_GRID_PX = 90


@dataclass(frozen=True, slots=True)
class Scene:
    """Beads on a slide, light and camera settings.

    The model: beads are uniformly stained spheres, imaged by ``optics`` at their
    own depth (see ``optics``); light adds up; illumination falls off towards the
    corners as 1 - v r^2; background is flat, with a linear gradient and a smooth
    positive haze from whatever lies far out of focus; the sensor is the Zelux
    CS165MU (see ``camera``, which gives each constant's source). Values without
    a source are ordinary choices of a microscopist and are meant to be varied.

    Attributes
    ----------
    height_px, width_px
        Frame size; the sensor's full frame by default.
    optics
        Objective, light and sampling.
    beads_per_megapixel
        Density; the number in a frame is Poisson distributed.
    bead_diameter_um, bead_diameter_cv
        Median diameter and its coefficient of variation (normal); light scales with volume.
    bead_peak_electrons
        Photoelectrons in the brightest pixel of a median bead in focus.
    brightness_cv
        Spread of staining (log-normal, sigma of the logarithm).
    clumped_fraction, clump_size_mean
        Fraction of beads that touch others, and the mean number in a clump.
    stage_defocus_um
        Distance of the slide from the focal plane.
    depth_spread_um
        Standard deviation of bead depths around the slide.
    floating_fraction, floating_depth_um
        Fraction of beads adrift, and how far from the slide they may be (uniform, both sides).
    background_electrons
        Flat background a pixel: dark signal, stray light, free dye.
    gradient_fraction, gradient_angle_deg
        Rise of the background across the frame, as a fraction, and its direction.
    haze_electrons
        Mean of the smooth out-of-focus haze.
    vignette_fraction
        Loss of light in the corners.
    hot_pixels_per_megapixel, hot_pixel_electrons
        Density and mean charge of hot pixels (after correction in the camera few remain).
    gain_db
        0 to 48 dB.
    exposure_ms
        As recorded in the file; the light is given in electrons above.
    black_level_counts
        Counts in the dark.
    sensor_seed
        Which sensor: fixes its hot pixels.
    """

    height_px: int = camera.HEIGHT_PX
    width_px: int = camera.WIDTH_PX
    optics: Optics = field(default_factory=Optics)
    beads_per_megapixel: float = 150.0
    bead_diameter_um: float = 1.0
    bead_diameter_cv: float = 0.05
    bead_peak_electrons: float = 5000.0
    brightness_cv: float = 0.2
    clumped_fraction: float = 0.15
    clump_size_mean: float = 3.0
    stage_defocus_um: float = 0.0
    depth_spread_um: float = 0.3
    floating_fraction: float = 0.06
    floating_depth_um: float = 15.0
    background_electrons: float = 150.0
    gradient_fraction: float = 0.15
    gradient_angle_deg: float = 30.0
    haze_electrons: float = 30.0
    vignette_fraction: float = 0.15
    hot_pixels_per_megapixel: float = 4.0
    hot_pixel_electrons: float = 300.0
    gain_db: float = 0.0
    exposure_ms: float = 20.0
    black_level_counts: float = camera.BLACK_LEVEL_COUNTS
    sensor_seed: int = 165


@dataclass(frozen=True, slots=True)
class Beads:
    """Where beads are: (n, 2) centres in px (y, x), (n,) depth and diameter in um, (n,) light.

    ``light`` is in median beads. All arrays are float32.
    """

    centre_px: NDArray[np.float32]
    depth_um: NDArray[np.float32]
    diameter_um: NDArray[np.float32]
    light: NDArray[np.float32]


def place(scene: Scene, rng: np.random.Generator) -> Beads:
    """Scatter beads over the frame and 48 px around it."""
    height, width = scene.height_px + 2 * _MARGIN_PX, scene.width_px + 2 * _MARGIN_PX
    wanted = int(rng.poisson(scene.beads_per_megapixel * height * width / 1e6))
    corner = np.array([_MARGIN_PX, _MARGIN_PX])
    centre = rng.uniform(0, (height, width), (wanted, 2)) - corner
    depth = rng.normal(0, scene.depth_spread_um, wanted)
    adrift = rng.random(wanted) < scene.floating_fraction
    depth[adrift] += rng.uniform(-1, 1, int(adrift.sum())) * scene.floating_depth_um
    diameter = scene.bead_diameter_um * np.clip(
        rng.normal(1, scene.bead_diameter_cv, wanted), 0.5, 1.5
    )
    _gather_clumps(scene, rng, centre, depth, diameter)
    light = (diameter / scene.bead_diameter_um) ** 3
    light *= rng.lognormal(0, scene.brightness_cv, wanted)
    return Beads(*(a.astype(np.float32) for a in (centre, depth, diameter, light)))


def _gather_clumps(
    scene: Scene,
    rng: np.random.Generator,
    centre: NDArray[np.float64],
    depth: NDArray[np.float64],
    diameter: NDArray[np.float64],
) -> None:
    """Move the first beads, in place, so that they touch one of their clump."""
    clumped = round(scene.clumped_fraction * len(centre))
    start = 0
    while start < clumped:
        stop = min(start + 1 + max(1, int(rng.poisson(scene.clump_size_mean - 1))), clumped)
        for one in range(start + 1, stop):
            mate = int(rng.integers(start, one))
            touching_px = (diameter[one] + diameter[mate]) / 2 / scene.optics.pixel_um
            angle = rng.uniform(0, 2 * np.pi)
            centre[one] = centre[mate] + touching_px * np.array([np.sin(angle), np.cos(angle)])
            depth[one] = depth[start]
        start = stop


def draw(scene: Scene, rng: np.random.Generator) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Take one frame of ``scene`` with freshly scattered beads.

    Returns
    -------
    frame : ndarray
        (Y, X) uint16 counts, 10 bits in the low bits.
    truth : ndarray
        (Y, X) uint8, 1 where a bead is: the pixels in which the noise-free image
        of some bead in focus reaches half of that bead's own peak, which is the
        bead's disc widened by diffraction to its full width at half maximum. A
        bead is in focus while its peak is at least a third of what it would be
        in the focal plane; beyond, it belongs to the background.
    """
    return expose(scene, place(scene, rng), rng)


def expose(
    scene: Scene, beads: Beads, rng: np.random.Generator
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Take one frame of given ``beads``; see ``draw``."""
    light, truth = _image_beads(scene, beads)
    _light_slide(scene, light, rng)
    where, charge = camera.hot_pixels(
        scene.height_px,
        scene.width_px,
        scene.hot_pixels_per_megapixel,
        scene.hot_pixel_electrons,
        scene.sensor_seed,
    )
    light.reshape(-1)[where] += charge
    return camera.expose_sensor(light, scene.gain_db, rng, scene.black_level_counts), truth


def _image_beads(scene: Scene, beads: Beads) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Sum the images of all beads, in electrons, and mark the true mask."""
    light = np.zeros((scene.height_px, scene.width_px), np.float32)
    truth = np.zeros(light.shape, np.uint8)
    optics = scene.optics
    # An eighth of the depth of field is finer than an image changes, and lets images share optics.
    step_um = optics.depth_of_field_um / 8
    defocus = np.rint((beads.depth_um + scene.stage_defocus_um) / step_um) * np.float32(step_um)
    unit = scene.bead_peak_electrons / focus_peak(optics, scene.bead_diameter_um)
    sizes = np.array(
        [
            stamp_size_px(optics, float(d), float(z))
            for d, z in zip(beads.diameter_um, defocus, strict=True)
        ],
        dtype=np.intp,
    )
    for size in np.unique(sizes):
        some = np.flatnonzero(sizes == size)
        for part in np.array_split(some, math.ceil(len(some) * size**2 / 2**20)):
            whole = np.floor(beads.centre_px[part] + 0.5)
            images, peaks = bead_images(
                optics,
                beads.diameter_um[part],
                defocus[part],
                beads.centre_px[part] - whole,
                int(size),
            )
            corners = whole.astype(np.intp) - size // 2
            for bead, image, peak, (top, left) in zip(part, images, peaks, corners, strict=True):
                y, x, window = _overlap(light.shape, top, left, int(size))
                if window is None:
                    continue
                light[y, x] += image[window] * (unit * beads.light[bead])
                in_focus = focus_peak(optics, round(float(beads.diameter_um[bead]), 2))
                if peak >= IN_FOCUS_PEAK_FRACTION * in_focus:
                    truth[y, x] |= image[window] >= peak / 2
    return light, truth


def _overlap(
    shape: tuple[int, int], top: int, left: int, size: int
) -> tuple[slice, slice, tuple[slice, slice] | None]:
    """Where a stamp lies in the frame, and which part of the stamp that is."""
    y0, y1 = max(top, 0), min(top + size, shape[0])
    x0, x1 = max(left, 0), min(left + size, shape[1])
    if y0 >= y1 or x0 >= x1:
        return slice(0), slice(0), None
    return slice(y0, y1), slice(x0, x1), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _light_slide(scene: Scene, light: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Add background and haze to ``light`` and apply the vignette, all in place."""
    height, width = light.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    angle = math.radians(scene.gradient_angle_deg)
    rise = np.float32(scene.background_electrons * scene.gradient_fraction / 2)
    light += np.float32(scene.background_electrons)
    light += rise * np.float32(math.sin(angle)) * y + rise * np.float32(math.cos(angle)) * x
    if scene.haze_electrons > 0:
        grid = (height // _HAZE_GRID_PX + 3, width // _HAZE_GRID_PX + 3)
        coarse = rng.chisquare(2, grid).astype(np.float32) * np.float32(scene.haze_electrons / 2)
        haze = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 0.8), (width, height), None, 0, 0, 2)
        light += np.maximum(haze, 0)
    v = np.float32(scene.vignette_fraction / 2)
    light *= 1 - v * (y * y + x * x)
