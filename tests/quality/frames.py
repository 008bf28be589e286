"""Small frames for the tests of the judgement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CEILING = 1023


def beads(
    seed: int,
    *,
    count: int = 60,
    peak: float = 400,
    blur_px: float = 0.0,
    noise: float = 2.0,
    background: float = 20.0,
    radius_px: float = 4.0,
    shape: tuple[int, int] = (400, 520),
    hot_pixels: int = 0,
) -> NDArray[np.uint16]:
    """Take a 10-bit frame of discs under a point-spread function of 1.2 px, then ``blur_px``."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.float32)
    yy, xx = np.mgrid[-14:15, -14:15]
    for _ in range(count):
        y, x = rng.uniform(16, shape[0] - 16), rng.uniform(16, shape[1] - 16)
        inside = np.hypot(yy - y % 1, xx - x % 1)
        disc = np.clip(radius_px - inside + 0.5, 0, 1) * rng.uniform(0.7, 1.3)
        image[int(y) - 14 : int(y) + 15, int(x) - 14 : int(x) + 15] += disc
    image = cv2.GaussianBlur(image, (0, 0), float(np.hypot(1.2, blur_px))) * peak
    counts = background + image + rng.normal(0, noise, shape)
    counts[rng.integers(0, shape[0], hot_pixels), rng.integers(0, shape[1], hot_pixels)] = 900
    return finish(counts)


def texture(seed: int, *, noise: float = 5.0) -> NDArray[np.uint16]:
    """Take a 10-bit frame of dark lines on bright grain: no background, no separate objects."""
    rng = np.random.default_rng(seed)
    shape = (400, 520)
    field = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), 10)
    grain = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), 1.5)
    lines = np.exp(-((field / field.std() / 0.15) ** 2))
    image = cv2.GaussianBlur(700 - 350 * lines + 120 * grain, (0, 0), 1.2)
    return finish(image + rng.normal(0, noise, shape))


def finish(counts: NDArray[Any]) -> NDArray[np.uint16]:
    """Round and clip as a 10-bit converter does."""
    return np.clip(np.rint(counts), 0, CEILING).astype(np.uint16)
