"""How well a bead network does as one thing changes at a time, on simulated frames."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from segbatch.acquire.simulate import Scene, draw
from segbatch.infer.normalise import scale_of
from segbatch.learn.metrics import Counts, count, summarise
from segbatch.learn.train import predict

if TYPE_CHECKING:
    from segbatch.learn.checkpoint import Card
    from segbatch.learn.nets import UNet

# Beads of 2 um under a 20x / 0.5 objective, the brightest pixel at half of the full well.
BASE = Scene(height_px=540, width_px=720, bead_diameter_um=2.0)
_DENSITIES = (20.0, 80.0, 300.0, 1000.0)
_PEAKS_ELECTRONS = (300.0, 1000.0, 3000.0, 10000.0)
_GAINS_DB = (0.0, 6.0, 12.0, 18.0, 24.0)
_DEFOCUS_DEPTHS_OF_FIELD = (0.0, 0.25, 0.5, 0.75)
_DIAMETERS_UM = (0.5, 1.0, 2.0, 4.0)


def scenes() -> dict[str, dict[str, Scene]]:
    """Return the sweep: what varies, and the scene at each of its values."""
    # light is shortened as gain rises, so that counts stay and noise grows
    gained = {f"{g:g}": _at_gain(g) for g in _GAINS_DB}
    depth = BASE.optics.depth_of_field_um
    return {
        "beads_per_megapixel": {f"{v:g}": replace(BASE, beads_per_megapixel=v) for v in _DENSITIES},
        "bead_peak_electrons": {
            f"{v:g}": replace(
                BASE, bead_peak_electrons=v, background_electrons=0.03 * v, haze_electrons=0.006 * v
            )
            for v in _PEAKS_ELECTRONS
        },
        "gain_db": gained,
        "defocus_depths_of_field": {
            f"{v:g}": replace(BASE, stage_defocus_um=v * depth) for v in _DEFOCUS_DEPTHS_OF_FIELD
        },
        "bead_diameter_um": {f"{v:g}": replace(BASE, bead_diameter_um=v) for v in _DIAMETERS_UM},
    }


def _at_gain(gain_db: float) -> Scene:
    light = 10 ** (-gain_db / 20)
    return replace(
        BASE,
        gain_db=gain_db,
        bead_peak_electrons=BASE.bead_peak_electrons * light,
        background_electrons=BASE.background_electrons * light,
        haze_electrons=BASE.haze_electrons * light,
    )


def sweep(net: UNet, card: Card, seed: int, frames: int = 4) -> dict[str, Any]:
    """Return pooled IoU at each value of the sweep, ``frames`` fresh frames each."""
    found: dict[str, Any] = {"seed": seed, "frames_each": frames}
    for row, (axis, points) in enumerate(scenes().items()):
        found[axis] = {}
        for column, (value, scene) in enumerate(points.items()):
            counts = [
                _one(net, card, scene, np.random.default_rng([seed, row, column, i]))
                for i in range(frames)
            ]
            found[axis][value] = summarise(counts)["iou"]
    return found


def _one(net: UNet, card: Card, scene: Scene, rng: np.random.Generator) -> Counts:
    frame, truth = draw(scene, rng)
    offset, scale = scale_of(frame, card.normalisation, 10)
    image = (frame.astype(np.float32) - np.float32(offset)) * np.float32(scale)
    return count(predict(net, image) >= card.threshold, truth)
