"""Folders of simulated frames: raw TIFFs as a camera would leave them, true masks beside them."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from segbatch import __version__
from segbatch.acquire.simulate import camera
from segbatch.acquire.simulate.kinds import any_scene, dim, kinds_of_run, scene_of_run, spoil
from segbatch.acquire.simulate.scene import Beads, Scene, draw, expose, place
from segbatch.errors import StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SCHEMA = "segbatch.simulated/1"
RUN_FILE = "simulated.json"
_EPOCH = "2026-01-01 09:00:00.000 +0000"
_SLOWEST_FRAME_MS = 1000.0
# Background black, beads in a green that stands out on grey and on black.
_PALETTE = ((0, 0, 0), (0, 200, 80))


def write_run(
    folder: Path,
    frames: int,
    seed: int,
    *,
    height_px: int = camera.HEIGHT_PX,
    width_px: int = camera.WIDTH_PX,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write a run of one slide, most frames good, the rest spoiled in seven ways.

    Frames are ``img_0001.tif``, true masks ``img_0001_truth.tif``, and
    ``simulated.json`` names each frame's kind and scene. The slide drifts by a
    few pixels over the run and beads jitter, so that the frames belong together
    and no two are alike. The files follow from the arguments alone.

    Parameters
    ----------
    folder
        Absent, empty, or holding the same run already, which is then written again.
    frames
        How many, at least 1.
    seed
        Names the run: slide, beads, kinds and noise.
    height_px, width_px
        Region of interest; the full sensor by default.
    threads
        Frames made at once; one a core, eight at most, by default.
    progress
        Called with the number of frames written so far.

    Returns
    -------
    dict
        How many frames there are of each kind.

    Raises
    ------
    UsageError
        ``frames`` is below 1, or the folder holds something else.
    StorageError
        The folder cannot be written.
    """
    rng = np.random.default_rng([seed, 0])
    scene = scene_of_run(rng, height_px, width_px)
    kinds = kinds_of_run(frames, rng) if frames > 0 else []
    beads = place(scene, rng)
    drift = _Drift(rng, frames)
    scenes = []
    for i, kind in enumerate(kinds):
        scenes.append(spoil(scene, kind, np.random.default_rng([seed, 1, i])))
    plan = _plan("run", seed, kinds, scenes)
    _claim(folder, frames, plan)

    def take(i: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        if kinds[i] == "duplicate":
            return take(i - 1)
        noise = np.random.default_rng([seed, 2, i])
        present = _none(beads) if kinds[i] == "empty" else drift.move(beads, i, noise)
        frame, truth = expose(scenes[i], present, noise)
        if kinds[i] == "torn":
            _tear(frame, truth, expose(dim(scenes[i], 0.4), present, noise)[0], noise)
        return frame, truth

    _write_all(folder, frames, take, scenes, threads, progress)
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def write_varied(
    folder: Path,
    frames: int,
    seed: int,
    *,
    height_px: int = camera.HEIGHT_PX,
    width_px: int = camera.WIDTH_PX,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write frames that have nothing in common, to train and test networks on.

    Each frame shows a scene of its own: another objective, bead, density, light
    and focus (see ``kinds.any_scene``). Arguments, files and errors as in ``write_run``.
    """
    scenes = [
        any_scene(np.random.default_rng([seed, 3, i]), height_px, width_px) for i in range(frames)
    ]
    _claim(folder, frames, _plan("varied", seed, ["good"] * frames, scenes))

    def take(i: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        return draw(scenes[i], np.random.default_rng([seed, 4, i]))

    _write_all(folder, frames, take, scenes, threads, progress)
    return {"good": frames}


class _Drift:
    """Slow drift of the stage along a Lissajous figure of a few pixels, and jitter of beads."""

    def __init__(self, rng: np.random.Generator, frames: int) -> None:
        self.amplitude_px = rng.uniform(4, 12, 2)
        self.turns = rng.uniform(0.3, 0.9, 2) * max(frames, 60) / 60
        self.frames = max(frames, 60)

    def move(self, beads: Beads, i: int, rng: np.random.Generator) -> Beads:
        """Return ``beads`` where they are in frame ``i``."""
        shift = self.amplitude_px * np.sin(2 * np.pi * self.turns * i / self.frames)
        jitter = rng.normal(0, 0.15, beads.centre_px.shape)
        return replace(beads, centre_px=(beads.centre_px + shift + jitter).astype(np.float32))


def _none(beads: Beads) -> Beads:
    return Beads(beads.centre_px[:0], beads.depth_um[:0], beads.diameter_um[:0], beads.light[:0])


def _tear(
    frame: NDArray[np.uint16],
    truth: NDArray[np.uint8],
    other: NDArray[np.uint16],
    rng: np.random.Generator,
) -> None:
    """Break a frame off at a random row, in place.

    Below it stands nothing, as where a transfer broke off, or, as often, the
    rows of ``other``, a frame at another light.
    """
    row = int(frame.shape[0] * rng.uniform(0.2, 0.85))
    if rng.random() < 0.5:
        frame[row:] = 0
        truth[row:] = 0
    else:
        frame[row:] = other[row:]


def _plan(mode: str, seed: int, kinds: list[str], scenes: list[Scene]) -> dict[str, Any]:
    listed = [
        {"file": _name(i), "kind": kind, "scene": asdict(scene)}
        for i, (kind, scene) in enumerate(zip(kinds, scenes, strict=True))
    ]
    return {"schema": SCHEMA, "mode": mode, "seed": seed, "frames": listed}


def _name(i: int) -> str:
    return f"img_{i + 1:04d}.tif"


def _claim(folder: Path, frames: int, plan: dict[str, Any]) -> None:
    """Make sure that the folder is ours to write, and leave the plan in it."""
    if frames < 1:
        raise UsageError(f"{frames} frames", "at least 1", "give --frames")
    text = (json.dumps(plan, indent=1) + "\n").encode()
    listed = folder / RUN_FILE
    try:
        if listed.is_file():
            same = listed.read_bytes() == text
        else:
            same = not folder.exists() or next(folder.iterdir(), None) is None
        if not same:
            raise UsageError(
                f"{folder} holds other files",
                "a new or empty folder, or the same simulated run",
                "name another folder",
            )
        folder.mkdir(parents=True, exist_ok=True)
        _put(listed, lambda file: file.write_bytes(text))
    except OSError as error:
        raise StorageError(
            f"{folder}: {error.strerror}", "a folder to write to", "check its rights and space"
        ) from error


def _write_all(
    folder: Path,
    frames: int,
    take: Callable[[int], tuple[NDArray[np.uint16], NDArray[np.uint8]]],
    scenes: list[Scene],
    threads: int | None,
    progress: Callable[[int], None] | None,
) -> None:
    def one(i: int) -> None:
        frame, truth = take(i)
        raw = folder / _name(i)
        _put(raw, lambda file: _write_frame(file, frame, scenes[i], i))
        _put(raw.with_name(f"{raw.stem}_truth.tif"), lambda file: _write_truth(file, truth))

    workers = threads or min(os.cpu_count() or 1, 8)
    try:
        with ThreadPoolExecutor(workers) as pool:
            for done, _ in enumerate(pool.map(one, range(frames)), 1):
                if progress is not None:
                    progress(done)
    except OSError as error:
        raise StorageError(
            f"{folder}: {error.strerror or error}", "room for the run", "free some space"
        ) from error


def _put(file: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a hidden neighbour, then give it its name: never half a file."""
    part = file.with_name(f".{file.name}.part")
    try:
        write(part)
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write_frame(file: Path, frame: NDArray[np.uint16], scene: Scene, i: int) -> None:
    """One page, uncompressed, with the JSON that Micro-Manager leaves in ImageJ's Info."""
    pixel_um = scene.optics.pixel_um
    said = {
        "BitDepth": camera.BIT_DEPTH,
        "PixelType": "GRAY16",
        "Width": frame.shape[1],
        "Height": frame.shape[0],
        "Camera": "TSICam",
        "Channel": "Beads",
        "Exposure-ms": round(scene.exposure_ms, 3),
        "TSICam-Gain": f"{scene.gain_db:.1f}",
        "Binning": "1",
        "PixelSizeUm": round(pixel_um, 6),
        "ElapsedTime-ms": i * _SLOWEST_FRAME_MS,
        "ReceivedTime": _EPOCH,
        "ImageNumber": i,
        "FrameIndex": i,
        "Simulated": f"segbatch {__version__}",
    }
    tifffile.imwrite(
        file,
        frame,
        imagej=True,
        byteorder="<",
        software="simulated Zelux CS165MU",
        resolution=(1 / pixel_um, 1 / pixel_um),
        metadata={"unit": "um", "Info": json.dumps(said)},
    )


def _write_truth(file: Path, truth: NDArray[np.uint8]) -> None:
    colours = np.zeros((3, 256), np.uint16)
    for index, colour in enumerate(_PALETTE):
        colours[:, index] = np.array(colour) * 257
    tifffile.imwrite(
        file,
        truth,
        photometric="palette",
        colormap=colours,
        compression="zlib",
        metadata=None,
        software=f"segbatch {__version__}",
    )
