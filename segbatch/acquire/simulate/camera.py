"""From light to counts: the Zelux CS165MU as its vendor describes it.

Source of the constants: Thorlabs, CS165 Series User Guide, ITN004347-D02
Rev D, chapter 5, unless said otherwise.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH_PX, HEIGHT_PX = 1440, 1080
BIT_DEPTH = 10
CEILING = (1 << BIT_DEPTH) - 1
FULL_WELL_ELECTRONS = 11_000.0
READ_NOISE_ELECTRONS = 4.0
QUANTUM_EFFICIENCY = 0.69  # at 575 nm: photoelectrons for each photon that reaches the sensor
MAX_GAIN_DB = 48.0
# The full well fills the converter at 0 dB.
ELECTRONS_PER_COUNT = FULL_WELL_ELECTRONS / CEILING
# Assumed: the vendor states no default black level.
BLACK_LEVEL_COUNTS = 5.0
# Below this mean, photon numbers are drawn from the Poisson distribution itself.
EXACT_POISSON_BELOW = 12.0
_ROWS_AT_ONCE = 64


def expose_sensor(
    electrons: NDArray[np.float32],
    gain_db: float,
    rng: np.random.Generator,
    black_level_counts: float = BLACK_LEVEL_COUNTS,
) -> NDArray[np.uint16]:
    """Read the counts for ``electrons`` expected in each pixel.

    Photon noise and Gaussian read noise, the full well, gain of
    10^(gain_db / 20), black level, rounding, clipping to 10 bits held in the
    low bits of 16.

    Where 12 or more electrons are expected, the Poisson variable plus read noise
    is drawn as one normal variable w through the Cornish-Fisher expansion to the
    third cumulant (Cornish and Fisher, Rev. Inst. Int. Stat. 5, 307, 1938),
    mu + s w + mu (w^2 - 1) / (6 s^2) with s^2 = mu + r^2: mean, variance and
    skewness are those of the exact sum, at a fifth of the time. Below, Poisson
    numbers are drawn exactly.

    Parameters
    ----------
    electrons
        (Y, X) float32, expected photoelectrons and dark electrons.

    Returns
    -------
    ndarray
        (Y, X) uint16 counts, 0..1023.
    """
    counts = np.empty(electrons.shape, np.uint16)
    scale = np.float32(10 ** (gain_db / 20) / ELECTRONS_PER_COUNT)
    variance = np.float32(READ_NOISE_ELECTRONS**2)
    for top in range(0, electrons.shape[0], _ROWS_AT_ONCE):  # blocks stay in the cache
        mean = electrons[top : top + _ROWS_AT_ONCE]
        w = rng.standard_normal(mean.shape, np.float32)
        s2 = mean + variance
        read = mean * (w * w - 1) / (6 * s2)
        read += w * np.sqrt(s2)
        read += mean
        few = mean < EXACT_POISSON_BELOW
        if few.any():
            read[few] = rng.poisson(mean[few]) + READ_NOISE_ELECTRONS * w[few]
        np.minimum(read, FULL_WELL_ELECTRONS, out=read)
        read *= scale
        read += black_level_counts + 0.5  # the cast below rounds down
        np.clip(read, 0, CEILING, out=read)
        counts[top : top + _ROWS_AT_ONCE] = read
    return counts


@lru_cache(maxsize=8)
def hot_pixels(
    height_px: int, width_px: int, per_megapixel: float, mean_electrons: float, sensor_seed: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Pixels with a strong dark current: flat indices, and electrons in each.

    They belong to the sensor, so they follow from ``sensor_seed`` alone and stay
    in place over a run; their charge is exponentially distributed.
    """
    rng = np.random.default_rng([sensor_seed, height_px, width_px])
    count = int(rng.poisson(per_megapixel * height_px * width_px / 1e6))
    where = rng.integers(0, height_px * width_px, count)
    return where, rng.exponential(mean_electrons, count).astype(np.float32)
