"""How a microscope images a fluorescent bead: scalar pupil-function theory.

The image of an incoherent object is the object convolved with the intensity
point-spread function h(x, y; z). With the pupil P(f), unit transmission up to
the cut-off NA / wavelength (Goodman, Introduction to Fourier Optics, ch. 6):

    h(x, y; z) = | F^-1 { P(f) exp(2 pi i (z sqrt((n/wavelength)^2 - |f|^2) + W(f))) } |^2

z is the defocus, n the index of the medium, W the aberration in waves, here
primary spherical, coma and astigmatism in Noll's Zernike terms (J. Opt. Soc. Am.
66, 207, 1976), which make a bead above focus look unlike one below. The object is the
projection of a uniformly stained sphere of radius a, whose Fourier transform is
3 (sin q - q cos q) / q^3 with q = 2 pi a |f|; a pixel integrates light over its
square, a factor sinc(f_x p) sinc(f_y p). All of it is multiplied in the Fourier
domain, so a bead may lie anywhere between pixels and its light is conserved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from segbatch.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXEL_PITCH_UM = 3.45  # CS165 Series User Guide, ITN004347-D02, chapter 5
STAMP_SIZES_PX = (24, 32, 48, 64, 96, 128, 192, 256, 384)


@dataclass(frozen=True, slots=True)
class Optics:
    """Objective, light and sampling.

    The defaults are a common dry objective, 20x / 0.5, and the emission peak of
    orange fluorescent beads; ``pixel_pitch_um`` is the camera's.

    Raises
    ------
    UsageError
        The pixels are too coarse to sample the image: its highest frequency is
        2 NA / wavelength, so a pixel may span wavelength / (4 NA) at most.
    """

    magnification: float = 20.0
    numerical_aperture: float = 0.5
    medium_index: float = 1.0
    wavelength_um: float = 0.580
    pixel_pitch_um: float = PIXEL_PITCH_UM
    spherical_rms_waves: float = 0.04
    coma_rms_waves: float = 0.02
    astigmatism_rms_waves: float = 0.01

    def __post_init__(self) -> None:
        if self.numerical_aperture >= self.medium_index:
            raise UsageError(
                f"numerical aperture {self.numerical_aperture}",
                f"less than the medium's index, {self.medium_index}",
            )
        if self.pixel_um > self.finest_pixel_um:
            raise UsageError(
                f"{self.pixel_um:.3f} um a pixel in the object",
                f"at most wavelength / (4 NA) = {self.finest_pixel_um:.3f} um",
                "raise the magnification or lower the numerical aperture",
            )

    @property
    def pixel_um(self) -> float:
        """Size of a pixel in the object, um."""
        return self.pixel_pitch_um / self.magnification

    @property
    def finest_pixel_um(self) -> float:
        """Largest pixel that still samples the image, um (Nyquist)."""
        return self.wavelength_um / (4 * self.numerical_aperture)

    @property
    def depth_of_field_um(self) -> float:
        """Wave-optical depth of field n wavelength / NA^2, um."""
        return self.medium_index * self.wavelength_um / self.numerical_aperture**2


def stamp_size_px(optics: Optics, diameter_um: float, defocus_um: float) -> int:
    """Side of a square, from ``STAMP_SIZES_PX``, that holds the image of a bead.

    Geometric blur radius |z| tan(asin(NA / n)), plus the bead, plus six Airy radii.
    """
    slope = math.tan(math.asin(optics.numerical_aperture / optics.medium_index))
    airy_um = 0.61 * optics.wavelength_um / optics.numerical_aperture
    radius_um = abs(defocus_um) * slope + diameter_um / 2 + 6 * airy_um
    wanted = 2 * radius_um / optics.pixel_um + 4
    return next((size for size in STAMP_SIZES_PX if size >= wanted), STAMP_SIZES_PX[-1])


@lru_cache(maxsize=512)
def transfer_function(optics: Optics, defocus_um: float, size_px: int) -> NDArray[np.complex64]:
    """Optical transfer function times the pixel's.

    Returns
    -------
    ndarray
        (size_px, size_px // 2 + 1) complex64, 1 at zero frequency, on the grid
        of ``numpy.fft.rfft2``.
    """
    f = np.fft.fftfreq(size_px, optics.pixel_um)
    fx, fy = f[None, :], f[:, None]
    f2 = fx**2 + fy**2
    cutoff = optics.numerical_aperture / optics.wavelength_um
    rho = np.sqrt(f2) / cutoff
    pupil = np.clip((1 - rho) * cutoff * size_px * optics.pixel_um + 0.5, 0, 1)  # soft rim
    axial = np.sqrt(np.maximum((optics.medium_index / optics.wavelength_um) ** 2 - f2, 0))
    waves = defocus_um * axial
    waves += optics.spherical_rms_waves * math.sqrt(5) * (6 * rho**4 - 6 * rho**2 + 1)
    cosine = np.divide(fx, np.sqrt(f2), out=np.zeros_like(f2), where=f2 > 0)
    waves += optics.coma_rms_waves * math.sqrt(8) * (3 * rho**3 - 2 * rho) * cosine
    waves += optics.astigmatism_rms_waves * math.sqrt(6) * rho**2 * (2 * cosine**2 - 1)
    field = np.fft.ifft2(pupil * np.exp(2j * np.pi * waves))
    otf = np.fft.rfft2(np.abs(field) ** 2)
    otf /= otf[0, 0]
    otf *= np.sinc(fx[:, : otf.shape[1]] * optics.pixel_um) * np.sinc(fy * optics.pixel_um)
    return otf.astype(np.complex64)


@lru_cache(maxsize=64)
def _grid(pixel_um: float, size_px: int) -> tuple[NDArray[np.float32], ...]:
    fy = np.fft.fftfreq(size_px).astype(np.float32)
    fx = np.fft.rfftfreq(size_px).astype(np.float32)
    radial = (np.hypot(fy[:, None], fx[None, :]) / pixel_um).astype(np.float32)
    # each column but the first and last stands for two of the full spectrum
    weight = np.full(fx.size, 2.0, np.float32)
    weight[0] = weight[-1] = 1.0
    # the faint far rings fade out before the stamp ends, so that it leaves no square edge
    from_centre = np.arange(size_px, dtype=np.float32) - size_px // 2
    distance = np.hypot(from_centre[:, None], from_centre[None, :]) / (size_px / 2)
    taper = 0.5 + 0.5 * np.cos(np.pi * np.clip((distance - 0.65) / 0.3, 0, 1))
    return fy, fx, radial, weight, taper.astype(np.float32)


def bead_images(
    optics: Optics,
    diameters_um: NDArray[np.float32],
    defocus_um: NDArray[np.float32],
    shifts_px: NDArray[np.float32],
    size_px: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images of beads, each of unit total light.

    Parameters
    ----------
    optics
        Objective, light and sampling.
    diameters_um, defocus_um
        (n,) float32.
    shifts_px
        (n, 2) float32, offset of the centre from pixel (size_px // 2, size_px // 2) in y, x.
    size_px
        Side of the images, even.

    Returns
    -------
    images : ndarray
        (n, size_px, size_px) float32, fraction of the bead's light in each pixel;
        beyond 0.65 of the stamp's half side they fade to nothing.
    peaks : ndarray
        (n,) float32, the highest fraction a pixel can have, be the bead centred on it or not.
    """
    fy, fx, radial, weight, taper = _grid(optics.pixel_um, size_px)
    otf = np.stack([transfer_function(optics, float(z), size_px) for z in defocus_um])
    q = np.maximum(np.pi * diameters_um[:, None, None] * radial, 1e-2)
    spectrum = otf * (3 * (np.sin(q) - q * np.cos(q)) / q**3)
    centred = (spectrum.real.sum(axis=1) @ weight) / size_px**2
    half = size_px // 2
    spectrum *= np.exp(-2j * np.pi * (shifts_px[:, :1] + half) * fy)[:, :, None]
    spectrum *= np.exp(-2j * np.pi * (shifts_px[:, 1:] + half) * fx)[:, None, :]
    images = np.fft.irfft2(spectrum, (size_px, size_px)).astype(np.float32)
    np.maximum(images, 0, out=images)
    images *= taper
    return images, np.maximum(centred, images.max(axis=(1, 2))).astype(np.float32)


@lru_cache(maxsize=256)
def focus_peak(optics: Optics, diameter_um: float) -> float:
    """Fraction of a bead's light in its brightest pixel, in focus and centred on that pixel."""
    size = stamp_size_px(optics, diameter_um, 0.0)
    one = np.array([diameter_um], np.float32)
    zero = np.zeros(1, np.float32)
    return float(bead_images(optics, one, zero, np.zeros((1, 2), np.float32), size)[1][0])
