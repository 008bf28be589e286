"""Draw the pictures of the documents: a simulated frame, and real beads through focus.

    python bench/pictures.py [--beads FOLDER]

``--beads`` is the folder of the z-stack of 200 nm beads that comes with
PSF-Extractor (https://github.com/hoogenboom-group/PSF-Extractor, CC BY 4.0);
without it only the simulated frame is drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from segbatch.acquire.find import find_raw_files
from segbatch.acquire.simulate import Scene, draw
from segbatch.acquire.source import open_source
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.segment import Segmenter
from segbatch.settings import Settings

OUTLINE = (60, 220, 255)  # blue, green, red
STEPS = (5, 10, 13, 15, 17, 19, 22, 28)
STEP_UM = 0.3
BEST_FOCUS = 17


def main() -> None:
    """Write ``docs/img/simulated_frame.png`` and ``docs/img/beads_focus.png``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beads", type=Path)
    given = parser.parse_args()
    folder = Path(__file__).parents[1] / "docs" / "img"
    folder.mkdir(parents=True, exist_ok=True)
    with Segmenter(open_model(""), Settings()) as segmenter:
        _save(folder / "simulated_frame.png", _simulated(segmenter))
        if given.beads:
            _save(folder / "beads_focus.png", _through_focus(segmenter, given.beads))


def _simulated(segmenter: Segmenter) -> NDArray[np.uint8]:
    scene = Scene(beads_per_megapixel=220, bead_diameter_um=2.0)
    frame, _ = draw(scene, np.random.default_rng(3))
    mask = segmenter.segment(frame, 10).mask
    window = (slice(0, 480), slice(0, 640))
    plain = _picture(frame[window], 5.0, float(frame.max()))
    return np.hstack([plain, _outlined(plain, mask[window])])


def _through_focus(segmenter: Segmenter, folder: Path) -> NDArray[np.uint8]:
    files = find_raw_files(folder)
    tiles = []
    for step in STEPS:
        with open_source(files[step], bit_depth=None, profile="zelux", max_file_gib=1) as source:
            frame = source.read(0)
        mask = segmenter.segment(frame.pixels, frame.bit_depth).mask
        # one scale for all, so that light lost out of focus shows
        tile = cv2.resize(_picture(frame.pixels[:320, :320], 2.0, 120.0), None, None, 1.25, 1.25)
        big = cv2.resize(mask[:320, :320], None, None, 1.25, 1.25, cv2.INTER_NEAREST)
        tile = _outlined(tile, big)
        said = f"{(step - BEST_FOCUS) * STEP_UM:+.1f} um"
        cv2.putText(tile, said, (8, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1)
        tiles.append(cv2.copyMakeBorder(tile, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(90, 90, 90)))
    half = len(tiles) // 2
    return np.vstack([np.hstack(tiles[:half]), np.hstack(tiles[half:])])


def _picture(pixels: NDArray[np.integer], black: float, white: float) -> NDArray[np.uint8]:
    """Return counts as (Y, X, 3) brightness, square-rooted so that faint beads show."""
    light = np.clip((pixels.astype(np.float32) - black) / (white - black), 0, 1) ** 0.5
    return cv2.cvtColor((light * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)


def _outlined(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    drawn = picture.copy()
    cv2.drawContours(drawn, outlines, -1, OUTLINE, 1)
    return drawn


def _save(file: Path, picture: NDArray[np.uint8]) -> None:
    # fewer greys make a smaller file, and nobody sees the difference
    cv2.imwrite(str(file), picture & 0xF8, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{file}  {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
