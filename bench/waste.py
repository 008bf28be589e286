"""How many pixels tiling sends through the network for each that it keeps: no network is run.

    python bench/waste.py

segbatch's planner for a network of stride 16 and halo 96 (a U-Net of depth 4), beside the windows
of MONAI's `sliding_window_inference`, asked of MONAI itself, and of nnU-Net, by the rule in its
source (`compute_steps_for_sliding_window`: as few steps of at most half a window as reach the end).
"""

from __future__ import annotations

import argparse
from math import ceil, prod

import machine
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from segbatch.infer.tiles import plan

STRIDE, HALO_PX = 16, 96
# bf16 on a processor, by the trial that `process` makes; a stream may fill the default memory_gib.
BYTES_PER_PX, MEMORY_GIB = 364, 2.0
WINDOW_PX = 512
FRAMES = [(512, 512), (1080, 1440), (2048, 2048), (4096, 4096), (20000, 20000)]


def segbatch(shape: tuple[int, int], tile_area: int) -> tuple[int, str]:
    """Return pixels computed and the grid."""
    grid = plan(shape, STRIDE, HALO_PX, tile_area)
    if grid is None:
        raise SystemExit(f"no tile of {tile_area} px for a halo of {HALO_PX} px")
    height, width = grid.tile_shape
    return grid.pixels, f"{grid.count} of {width} x {height}"


def monai(shape: tuple[int, int], overlap: float) -> tuple[int, str]:
    """Return the same of MONAI, for windows of 512 px; a smaller frame is padded to one."""
    window = (WINDOW_PX, WINDOW_PX)
    padded = tuple(max(side, WINDOW_PX) for side in shape)
    interval = _get_scan_interval(padded, window, 2, (overlap, overlap))
    count = len(dense_patch_slices(padded, window, interval))
    return count * WINDOW_PX**2, f"{count} of {WINDOW_PX} x {WINDOW_PX}"


def nnunet(shape: tuple[int, int]) -> tuple[int, str]:
    """Return the same of nnU-Net, whose windows overlap by half."""
    steps = [ceil(max(side - WINDOW_PX, 0) / (WINDOW_PX / 2)) + 1 for side in shape]
    count = prod(steps)
    return count * WINDOW_PX**2, f"{count} of {WINDOW_PX} x {WINDOW_PX}"


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for line in machine.describe():
        print(line)
    fits = int(MEMORY_GIB * 2**30 / BYTES_PER_PX)
    ways = {
        f"segbatch, {MEMORY_GIB:g} GiB": lambda shape: segbatch(shape, fits),
        "segbatch, no larger than 512 x 512": lambda shape: segbatch(shape, WINDOW_PX**2),
        "MONAI, overlap 0.25": lambda shape: monai(shape, 0.25),
        "MONAI, overlap 0.5": lambda shape: monai(shape, 0.5),
        "nnU-Net, step 0.5": nnunet,
    }
    print(f"\n| frame, px | {' | '.join(ways)} |\n|{'---|' * (len(ways) + 1)}")
    for shape in FRAMES:
        cells = []
        for way in ways.values():
            computed, grid = way(shape)
            cells.append(f"{computed / prod(shape):.2f} ({grid})")
        print(f"| {shape[1]} x {shape[0]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
