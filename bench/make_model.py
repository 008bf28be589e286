"""Make the network that ships with segbatch, from nothing: simulate, train, test, export.

    python bench/make_model.py [--build build/model] [--steps 3000]

Everything follows from the seeds below, on one type of processor and one
version of torch. Took 19 minutes on two threads of a busy four-core machine; needs
1 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segbatch.learn.metrics import Counts

# Torch gives large blocks back to the system after each step and pages them in
# again, which costs more than half of its time on a processor; glibc reads these
# when a process starts.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}

TRAIN_FRAMES, TRAIN_SEED = 700, 11
TEST_FRAMES, TEST_SEED = 96, 999
RUN_FRAMES, RUN_SEED = 40, 998
SWEEP_SEED = 997
PARITY_FRAMES = 16


def main() -> None:
    """Run the whole sequence and write ``segbatch/infer/shipped/beads.*``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=Path("build/model"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=2)
    shipped = Path(__file__).parents[1] / "segbatch" / "infer" / "shipped" / "beads.json"
    parser.add_argument("--out", type=Path, default=shipped)
    given = parser.parse_args()
    if any(os.environ.get(key) != value for key, value in _MALLOC.items()):
        again = [sys.executable, *sys.argv]
        os.execve(sys.executable, again, {**os.environ, **_MALLOC})  # noqa: S606 - this script

    import msgspec

    from segbatch.acquire.simulate import write_run, write_varied
    from segbatch.infer.engine.manifest import ZScore
    from segbatch.learn.checkpoint import load_checkpoint, save_checkpoint
    from segbatch.learn.data import read_examples
    from segbatch.learn.export.network import export
    from segbatch.learn.fit import fit
    from segbatch.learn.metrics import summarise
    from segbatch.learn.nets import BEADS
    from segbatch.learn.sweep import sweep
    from segbatch.learn.train import Recipe, evaluate

    build: Path = given.build
    size = {"height_px": 540, "width_px": 720}
    write_varied(build / "train", TRAIN_FRAMES, TRAIN_SEED, **size)
    write_varied(build / "test", TEST_FRAMES, TEST_SEED)
    write_run(build / "run", RUN_FRAMES, RUN_SEED)
    started = time.monotonic()

    def progress(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"step {step}/{given.steps} loss {loss:.3f} {time.monotonic() - started:.0f} s")
            sys.stdout.flush()

    checkpoint = build / "beads.pt"
    card = fit(
        build / "train",
        checkpoint,
        test=build / "test",
        architecture=BEADS,
        recipe=Recipe(steps=given.steps, threads=given.threads),
        command="make model",
        progress=progress,
    )
    net, card = load_checkpoint(checkpoint)
    run = [e for e in read_examples(build / "run", ZScore()) if e.name in _good(build / "run")]
    card = msgspec.structs.replace(
        card,
        training={
            **card.training,
            "data": f"simulated, {TRAIN_FRAMES} varied frames, seed {TRAIN_SEED}",
        },
        metrics={
            "data": f"simulated, {TEST_FRAMES} varied frames, seed {TEST_SEED}",
            **card.metrics,
            **_by_focus(evaluate(net, read_examples(build / "test", card.normalisation)), build),
            "good_frames_of_a_run": {"seed": RUN_SEED, **summarise(evaluate(net, run))},
            "sweep_iou": sweep(net, card, SWEEP_SEED),
        },
    )
    save_checkpoint(checkpoint, net, card)
    parity = read_examples(build / "test", card.normalisation)[:PARITY_FRAMES]
    manifest = export(net, card, given.out, parity, given.threads)
    print(msgspec.json.format(msgspec.json.encode(manifest), indent=1).decode())


def _by_focus(counts: list[Counts], build: Path) -> dict[str, Any]:
    """Split the unseen frames at 0.7 depths of field between the slide and focus."""
    from segbatch.learn.metrics import summarise

    near, far = [], []
    listed = json.loads((build / "test" / "simulated.json").read_text())["frames"]
    for one, frame in zip(counts, listed, strict=True):
        scene, optics = frame["scene"], frame["scene"]["optics"]
        depth_of_field_um = (
            optics["medium_index"] * optics["wavelength_um"] / optics["numerical_aperture"] ** 2
        )
        (near if abs(scene["stage_defocus_um"]) < 0.7 * depth_of_field_um else far).append(one)
    return {"unseen_in_focus": summarise(near), "unseen_out_of_focus": summarise(far)}


def _good(folder: Path) -> set[str]:
    listed = json.loads((folder / "simulated.json").read_text())["frames"]
    return {frame["file"] for frame in listed if frame["kind"] == "good"}


if __name__ == "__main__":
    main()
