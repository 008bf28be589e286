"""The simulated camera obeys its data sheet and optics, and its runs are whole and repeatable."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile

from segbatch.acquire.find import find_raw_files
from segbatch.acquire.simulate import (
    KINDS,
    Beads,
    Scene,
    any_scene,
    camera,
    draw,
    expose,
    optics,
    place,
    write_run,
    write_varied,
)
from segbatch.acquire.source import open_source
from segbatch.errors import StorageError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SMALL = Scene(height_px=200, width_px=240)


def rng(seed: int = 1) -> np.random.Generator:
    """Return a source of chance."""
    return np.random.default_rng(seed)


def one_bead(depth_um: float = 0.0, diameter_um: float = 1.0) -> Beads:
    """Return a bead in the middle of ``SMALL``."""
    return Beads(
        np.array([[100, 120]], np.float32),
        np.array([depth_um], np.float32),
        np.array([diameter_um], np.float32),
        np.ones(1, np.float32),
    )


def image_of(diameter_um: float, defocus_um: float, shift_px: float = 0.0) -> NDArray[np.float32]:
    """Return the image of one bead of unit light under the default objective, (192, 192)."""
    images, _ = optics.bead_images(
        optics.Optics(),
        np.array([diameter_um], np.float32),
        np.array([defocus_um], np.float32),
        np.full((1, 2), shift_px, np.float32),
        192,
    )
    return images[0]


@pytest.mark.parametrize("defocus_um", [0.0, 3.0, 10.0])
def test_a_beads_light_is_conserved_through_focus(defocus_um: float) -> None:
    """The pixels of a bead's image hold its light, wherever it lies in depth."""
    assert image_of(1.0, defocus_um).sum() == pytest.approx(1.0, abs=0.03)


def test_a_point_in_focus_is_as_wide_as_diffraction_says() -> None:
    """The image of a tiny bead is 0.51 wavelength / NA wide at half maximum, plus the pixel."""
    profile = image_of(0.05, 0.0)[96]
    half = profile.max() / 2
    right = 96 + np.flatnonzero(profile[96:] < half)[0]
    edge = right - 1 + (profile[right - 1] - half) / (profile[right - 1] - profile[right])
    width_um = 2 * (edge - 96) * optics.Optics().pixel_um
    assert width_um == pytest.approx(0.51 * 0.580 / 0.5, rel=0.1)


def test_a_bead_shifted_by_half_a_pixel_is_shared_by_two_pixels() -> None:
    """A bead between four pixels lights them alike, but for the objective's coma."""
    four = image_of(1.0, 0.0, 0.5)[96:98, 96:98]
    assert four.min() > 0.9 * four.max()


def test_above_focus_looks_unlike_below() -> None:
    """Spherical aberration makes the two sides of focus differ."""
    above, below = image_of(0.2, 4.0), image_of(0.2, -4.0)
    assert np.abs(above - below).max() > 0.1 * above.max()


def test_pixels_too_coarse_for_the_objective_are_refused() -> None:
    """An objective that the camera cannot sample names the pixel it would need."""
    with pytest.raises(UsageError, match=r"wavelength / \(4 NA\)"):
        optics.Optics(magnification=10, numerical_aperture=0.8)


@pytest.mark.parametrize("electrons", [3.0, 11.0, 13.0, 200.0, 6000.0])
def test_noise_is_that_of_photons_and_reading(electrons: float) -> None:
    """Mean and variance of counts are those of Poisson light, read noise and rounding."""
    light = np.full((400, 400), electrons, np.float32)
    counts = camera.expose_sensor(light, 0.0, rng(), black_level_counts=50).astype(np.float64)
    gain = camera.ELECTRONS_PER_COUNT
    variance = (electrons + camera.READ_NOISE_ELECTRONS**2) / gain**2 + 1 / 12
    assert counts.mean() == pytest.approx(50 + electrons / gain, abs=0.02 + electrons * 1e-5)
    assert counts.var() == pytest.approx(variance, rel=0.03)


def test_faint_light_is_skewed_as_poisson_light_is() -> None:
    """The third moment of 20 expected electrons is that of a Poisson variable."""
    light = np.full((800, 800), 20.0, np.float32)
    # 24 dB spreads an electron over 1.5 counts, so that rounding hides nothing
    counts = camera.expose_sensor(light, 24.0, rng(), black_level_counts=200).astype(np.float64)
    electrons = (counts - counts.mean()) * camera.ELECTRONS_PER_COUNT / 10 ** (24 / 20)
    assert (electrons**3).mean() == pytest.approx(20.0, rel=0.15)


def test_twenty_decibels_are_a_factor_of_ten() -> None:
    """Gain multiplies counts above black by 10 to the power of dB over 20."""
    light = np.full((100, 100), 300.0, np.float32)
    plain = camera.expose_sensor(light, 0.0, rng(), 0.0).mean()
    assert camera.expose_sensor(light, 20.0, rng(), 0.0).mean() == pytest.approx(
        10 * plain, rel=0.02
    )


def test_the_ceiling_is_1023() -> None:
    """No light gives more than ten bits, and enough light gives all of them."""
    light = np.full((50, 50), 1e6, np.float32)
    assert set(np.unique(camera.expose_sensor(light, 0.0, rng()))) == {1023}


def test_a_frame_follows_from_its_seed() -> None:
    """Drawing a scene twice from one seed gives the same frame and truth."""
    first, second = draw(SMALL, rng(5)), draw(SMALL, rng(5))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert first[0].dtype == np.uint16
    assert first[1].dtype == np.uint8
    assert first[0].shape == first[1].shape == (200, 240)
    assert not np.array_equal(first[0], draw(SMALL, rng(6))[0])


@pytest.mark.parametrize("diameter_um", [2.0, 5.0])
def test_truth_is_the_beads_disc(diameter_um: float) -> None:
    """The true mask of a bead larger than the diffraction limit is close to its disc."""
    # A sphere's projection reaches half of its peak at sqrt(3)/2 of the radius.
    _, truth = expose(SMALL, one_bead(diameter_um=diameter_um), rng())
    across_px = math.sqrt(4 * truth.sum() / math.pi)
    wanted_px = diameter_um * math.sqrt(0.75) / SMALL.optics.pixel_um
    assert across_px == pytest.approx(wanted_px, rel=0.1)


def test_the_brightest_pixel_is_as_asked() -> None:
    """A median bead in focus reaches ``bead_peak_electrons`` above the background."""
    scene = replace(SMALL, haze_electrons=0.0, vignette_fraction=0.0, gradient_fraction=0.0)
    frame, _ = expose(scene, one_bead(), rng())
    wanted = (5000 + 150) / camera.ELECTRONS_PER_COUNT + scene.black_level_counts
    assert frame[100, 120] == pytest.approx(wanted, rel=0.06)


def test_a_bead_far_out_of_focus_is_background() -> None:
    """Truth holds a bead in focus, and none ten micrometres away from it."""
    assert expose(SMALL, one_bead(), rng())[1].any()
    assert not expose(SMALL, one_bead(depth_um=10.0), rng())[1].any()


def test_clumped_beads_touch() -> None:
    """With every bead in a clump, nearest neighbours are a diameter apart."""
    scene = replace(SMALL, clumped_fraction=1.0, bead_diameter_cv=0.0, beads_per_megapixel=400.0)
    centre = place(scene, rng()).centre_px
    apart = np.linalg.norm(centre[:, None] - centre[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    touching = scene.bead_diameter_um / scene.optics.pixel_um
    assert np.median(apart.min(axis=1)) == pytest.approx(touching, rel=0.05)


def test_hot_pixels_stay_where_they_are() -> None:
    """Two frames of one sensor share their hot pixels, in other places than another sensor's."""
    scene = replace(
        SMALL, beads_per_megapixel=0.0, hot_pixels_per_megapixel=400.0, hot_pixel_electrons=4000.0
    )
    first, second = (set(np.flatnonzero(draw(scene, rng(i))[0] > 150)) for i in (1, 2))
    other = set(np.flatnonzero(draw(replace(scene, sensor_seed=7), rng(1))[0] > 150))
    assert first
    assert first == second
    assert first != other


@pytest.mark.parametrize("seed", range(8))
def test_any_scene_can_be_drawn(seed: int) -> None:
    """Every scene that training may ask for is within the optics and gives a frame."""
    scene = any_scene(rng(seed), 96, 96)
    frame, truth = draw(scene, rng(seed))
    assert frame.max() <= 1023
    assert set(np.unique(truth)) <= {0, 1}


def test_a_run_holds_every_kind_and_most_frames_are_good(tmp_path: Path) -> None:
    """Of 60 frames at least 60 % are good, every bad kind occurs, and the first is good."""
    counts = write_run(tmp_path / "run", 60, 1, height_px=48, width_px=64)
    listed = json.loads((tmp_path / "run" / "simulated.json").read_text())["frames"]
    kinds = [frame["kind"] for frame in listed]
    assert set(counts) == set(KINDS)
    assert sum(counts.values()) == 60
    assert counts["good"] >= 36
    assert kinds[0] == "good"
    for i, kind in enumerate(kinds):
        if kind == "duplicate":
            before, after = (
                tifffile.imread(tmp_path / "run" / listed[j]["file"]) for j in (i - 1, i)
            )
            assert np.array_equal(before, after)


def test_a_runs_files_are_read_back_as_a_ten_bit_cameras(tmp_path: Path) -> None:
    """The reader finds depth, exposure, gain and pixel size, and takes no true mask for a frame."""
    write_run(tmp_path, 3, 1, height_px=48, width_px=64)
    files = find_raw_files(tmp_path)
    assert [file.name for file in files] == ["img_0001.tif", "img_0002.tif", "img_0003.tif"]
    with open_source(files[0], bit_depth=None, profile="16bit", max_file_gib=1.0) as source:
        frame = source.read(0)
    assert frame.bit_depth == 10
    assert frame.acquisition.exposure_ms == 20.0
    assert frame.acquisition.gain_db == 0.0
    assert frame.acquisition.pixel_size_um == pytest.approx(0.1725)
    truth = tifffile.imread(tmp_path / "img_0001_truth.tif")
    assert truth.dtype == np.uint8
    assert truth.shape == frame.pixels.shape


@pytest.mark.parametrize("write", [write_run, write_varied])
def test_a_run_follows_from_its_seed(tmp_path: Path, write: type) -> None:
    """The same seed writes the same bytes with any number of threads; another seed others."""
    for name, seed, threads in (("a", 1, 1), ("b", 1, 3), ("c", 2, 1)):
        write(tmp_path / name, 6, seed, height_px=48, width_px=64, threads=threads)
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert len(names) == 13
    a, b, c = ([(tmp_path / d / n).read_bytes() for n in names] for d in "abc")
    assert a == b
    assert a != c


def test_a_run_is_taken_up_again(tmp_path: Path) -> None:
    """An interrupted run can be written again, and a file lost from it comes back."""
    write_run(tmp_path, 3, 1, height_px=48, width_px=64)
    (tmp_path / "img_0002.tif").unlink()
    write_run(tmp_path, 3, 1, height_px=48, width_px=64)
    assert (tmp_path / "img_0002.tif").is_file()


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    """Frames are never written among files of someone else, or of another run."""
    (tmp_path / "img_0001.tif").write_bytes(b"precious")
    with pytest.raises(UsageError, match="holds other files"):
        write_run(tmp_path, 3, 1)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"precious"]
    write_run(tmp_path / "run", 1, 1, height_px=48, width_px=64)
    with pytest.raises(UsageError, match="holds other files"):
        write_run(tmp_path / "run", 1, 2, height_px=48, width_px=64)


def test_a_run_of_nothing_is_refused(tmp_path: Path) -> None:
    """Zero frames are a mistake, and leave no folder."""
    with pytest.raises(UsageError, match="at least 1"):
        write_run(tmp_path / "run", 0, 1)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    """A file in the place of the folder's parent is reported as storage, with its path."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/run"):
        write_run(tmp_path / "file" / "run", 1, 1)


def test_progress_counts_every_frame(tmp_path: Path) -> None:
    """The callback is told of each frame once, in order."""
    told: list[int] = []
    write_run(tmp_path, 5, 1, height_px=48, width_px=64, progress=told.append)
    assert told == [1, 2, 3, 4, 5]
