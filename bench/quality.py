"""How well and how fast frames are judged.

Prints three tables: the verdicts on simulated runs over a wide sweep, those on
other textures with known faults, and the cost of each measure on one core.
With ``--data FOLDER`` also the verdicts on real sets (see ``REAL_SETS``).

    taskset -c 0 python bench/quality.py --data FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import tifffile

from segbatch.acquire.simulate.camera import CEILING, ELECTRONS_PER_COUNT
from segbatch.acquire.simulate.kinds import any_scene, dim
from segbatch.acquire.simulate.scene import Scene, draw
from segbatch.infer.quality import Judge, measure, measures, structure, tears
from segbatch.settings.sections import QualitySettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

REASONS = ("empty", "noisy", "overexposed", "underexposed", "blurred", "duplicate", "torn")
GOOD_FRAMES = 14


@dataclass(frozen=True)
class Case:
    """A frame, the reasons that are right for it (none: accept), and its group."""

    name: str
    pixels: NDArray[Any]
    right: tuple[str, ...]
    group: Any = ""


def judge_run(cases: list[Case], ceiling: int | None) -> list[str]:
    """Reason given to each frame of one run, empty where it was accepted."""
    judge = Judge(QualitySettings())
    for i, case in enumerate(cases):
        found = measure(case.pixels, ceiling)
        judge.judge(i, found, hashlib.sha256(case.pixels.tobytes()).hexdigest(), case.group)
    return [",".join(verdict.reasons) for verdict in judge.settle().values()]


# --- simulated bead runs ---------------------------------------------------------------


def bead_run(rng: np.random.Generator, size: tuple[int, int]) -> list[Case]:
    """Take one run of some bead scene: good frames, and two of each fault.

    Good: peaks of 60 to 600 counts on at most 250, at least 20 times the background's noise, within
    half a depth of field of focus. Noisy: 4 to 12 times the noise, and at most a sixth
    of what good frames have (or 4), gain up. Overexposed: peaks of 10 to 40 times the ceiling.
    Underexposed: peaks of 1 to 4 counts that stand three times above the noise.
    Blurred: 4 to 12 depths of field. Torn: zeros, or another exposure, below a row.
    """
    scene = _good_scene(rng, size)
    kinds = [""] * (GOOD_FRAMES - 1)
    kinds += [k for k in REASONS[:5] for _ in range(2)] + ["zero tail", "joined", "duplicate"]
    cases: list[Case] = [_case("", scene, rng)]
    for kind in rng.permutation(kinds):
        if kind == "duplicate":
            good = [case for case in cases if not case.right]
            source = good[int(rng.integers(len(good)))]
            cases.append(replace(source, name=kind, right=("duplicate",)))
        elif kind in ("zero tail", "joined"):
            cases.append(_torn(kind, scene, rng))
        elif (spoiled := _spoil(kind, scene, rng)) is not None:
            cases.append(_case(str(kind), spoiled, rng))
    return cases


def _case(kind: str, scene: Scene, rng: np.random.Generator) -> Case:
    frame, truth = draw(scene, rng)
    if not kind and not truth.any():
        kind = "empty"  # a sparse scene of which no bead lies in the frame
    group = (round(scene.exposure_ms, 3), round(scene.gain_db, 1))
    # Light spread by defocus may drown in the noise, and haze is light far out of focus.
    also = {"blurred": ("empty",), "empty": ("blurred",)}
    return Case(kind or "good", frame, (kind, *also.get(kind, ())) if kind else (), group)


def _good_scene(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    scene = any_scene(rng, *size)
    while scene.beads_per_megapixel * size[0] * size[1] / 1e6 < 4:
        scene = any_scene(rng, *size)
    counts = 10 ** (scene.gain_db / 20) / ELECTRONS_PER_COUNT
    wanted = np.exp(rng.uniform(np.log(60), np.log(600)))
    scene = dim(scene, wanted / (scene.bead_peak_electrons * counts))
    scene = replace(scene, background_electrons=min(scene.background_electrons, 250 / counts))
    if _snr(scene) < 20:  # as many photons as it takes, gain down by as much
        factor = 20 / _snr(scene)
        scene = replace(
            dim(scene, factor**2), gain_db=max(scene.gain_db - 40 * math.log10(factor), 0.0)
        )
    depth = scene.optics.depth_of_field_um
    return replace(
        scene,
        stage_defocus_um=float(np.clip(rng.normal(0, 0.2), -0.5, 0.5)) * depth,
        exposure_ms=20.0,
    )


def _snr(scene: Scene) -> float:
    return scene.bead_peak_electrons / math.sqrt(16 + scene.background_electrons)


def _spoil(kind: str, scene: Scene, rng: np.random.Generator) -> Scene | None:
    counts = scene.bead_peak_electrons * 10 ** (scene.gain_db / 20) / ELECTRONS_PER_COUNT
    if kind == "empty":
        return replace(scene, beads_per_megapixel=0.0)
    if kind == "blurred":
        depth = rng.uniform(4, 12) * scene.optics.depth_of_field_um * rng.choice((-1, 1))
        return replace(scene, stage_defocus_um=float(depth))
    if kind == "overexposed":
        return dim(scene, rng.uniform(10, 40) * CEILING / counts)
    if kind == "underexposed":
        faint = dim(scene, rng.uniform(1, 4) / counts)
        return faint if _snr(faint) >= 3 else None
    if kind == "noisy":
        snr = max(min(rng.uniform(4, 12), _snr(scene) / 6), 4.0)
        share = scene.background_electrons / scene.bead_peak_electrons
        peak = (snr**2 * share + math.sqrt(snr**4 * share**2 + 64 * snr**2)) / 2
        gain = 20 * math.log10(300 * ELECTRONS_PER_COUNT / peak)
        return replace(
            dim(scene, peak / scene.bead_peak_electrons), gain_db=float(np.clip(gain, 0, 48))
        )
    return scene


def _torn(kind: str, scene: Scene, rng: np.random.Generator) -> Case:
    frame, _ = draw(scene, rng)
    row = int(rng.uniform(0.1, 0.9) * frame.shape[0])
    if kind == "zero tail":
        frame[row:] = 0
    else:
        other, _ = draw(dim(scene, 0.4), rng)
        frame[row:] = other[row:]
    return Case(kind, frame, ("torn",), (20.0, round(scene.gain_db, 1)))


# --- other textures --------------------------------------------------------------------


def texture_run(name: str, rng: np.random.Generator) -> list[Case]:
    """Take one run of a texture that is not beads: good frames, and two of each fault."""
    make = TEXTURES[name]
    noise = rng.uniform(2, 6)

    def photograph(image: NDArray[Any], noise: float, light: float = 1.0) -> NDArray[np.uint16]:
        counts = image * light + rng.normal(0, noise, image.shape)
        return np.clip(np.rint(counts), 0, CEILING).astype(np.uint16)

    cases = [Case("good", photograph(make(rng), noise), ()) for _ in range(GOOD_FRAMES)]
    for _ in range(2):
        flat = np.full((520, 696), np.median(make(rng)), np.float32)
        blurred = cv2.GaussianBlur(make(rng), (0, 0), rng.uniform(7, 14))
        joined = photograph(make(rng), noise)
        row = int(rng.uniform(0.1, 0.9) * len(joined))
        joined[row:] = photograph(make(rng), noise, 0.6)[row:]
        cases += [
            Case("empty", photograph(flat, noise), ("empty",)),
            Case("blurred", photograph(blurred, noise), ("blurred",)),
            Case("noisy", photograph(make(rng), 16 * noise), ("noisy",)),
            Case("overexposed", photograph(make(rng), noise, 12), ("overexposed",)),
            Case("joined", joined, ("torn",)),
        ]
    order = rng.permutation(len(cases) - 1) + 1
    return [cases[0], *(cases[int(i)] for i in order)]


def _nuclei(rng: np.random.Generator) -> NDArray[np.float32]:
    image = np.full((520, 696), 40, np.float32)
    for _ in range(int(rng.integers(8, 90))):
        centre = (int(rng.integers(0, 696)), int(rng.integers(0, 520)))
        axes = (int(rng.integers(8, 16)), int(rng.integers(6, 12)))
        cv2.ellipse(
            image,
            centre,
            axes,
            float(rng.uniform(0, 180)),
            0,
            360,
            float(rng.uniform(150, 500)),
            -1,
        )
    grain = cv2.GaussianBlur(rng.normal(0, 1, image.shape).astype(np.float32), (0, 0), 2.5)
    return cv2.GaussianBlur(image * (1 + 0.8 * grain), (0, 0), 1.5)


def _membranes(rng: np.random.Generator) -> NDArray[np.float32]:
    field = cv2.GaussianBlur(rng.normal(0, 1, (520, 696)).astype(np.float32), (0, 0), 12)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (520, 696)).astype(np.float32), (0, 0), 1.5)
    lines = np.exp(-((field / field.std() / 0.12) ** 2))
    return cv2.GaussianBlur(600 - 380 * lines + 110 * grain, (0, 0), 1.2)


def _phase(rng: np.random.Generator) -> NDArray[np.float32]:
    image = np.full((520, 696), 500, np.float32)
    for _ in range(int(rng.integers(10, 60))):
        centre = (int(rng.integers(0, 696)), int(rng.integers(0, 520)))
        axes = (int(rng.integers(14, 34)), int(rng.integers(8, 18)))
        turn = float(rng.uniform(0, 180))
        cv2.ellipse(image, centre, axes, turn, 0, 360, 640, 4)
        cv2.ellipse(image, centre, axes, turn, 0, 360, 380, -1)
    return cv2.GaussianBlur(image, (0, 0), 1.5)


def _filaments(rng: np.random.Generator) -> NDArray[np.float32]:
    image = np.full((520, 696), 30, np.float32)
    for _ in range(int(rng.integers(15, 80))):
        start = rng.uniform(0, 600, 2)
        turns = np.cumsum(rng.normal(0, 0.15, 60)) + rng.uniform(0, 2 * np.pi)
        steps = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1) * 6, axis=0)
        line = np.rint(start + steps).astype(np.int32)
        cv2.polylines(image, [line], False, float(rng.uniform(150, 400)), 2, cv2.LINE_AA)
    return cv2.GaussianBlur(image, (0, 0), 1.3)


TEXTURES: dict[str, Callable[[np.random.Generator], NDArray[np.float32]]] = {
    "nuclei": _nuclei,
    "membranes": _membranes,
    "phase contrast": _phase,
    "filaments": _filaments,
}

# --- real sets -------------------------------------------------------------------------


def _bead_stack(folder: Path) -> Iterator[Case]:
    """Beads through focus, best at frame 17.

    Sharp where the brightest bead keeps half of its peak in the best frame (full width
    at half maximum in depth), no longer of use below a quarter, left out in between.
    """
    frames = [_read(file) for file in sorted(folder.glob("*.tif"))]
    peaks = [float(np.sort(frame, axis=None)[-9]) - float(np.median(frame)) for frame in frames]
    for i, (frame, peak) in enumerate(zip(frames, peaks, strict=True)):
        if peak >= max(peaks) / 2:
            yield Case(f"frame {i}", frame, ())
        elif peak <= max(peaks) / 4:
            yield Case(f"frame {i}", frame, ("blurred", "empty"))
        else:
            yield Case(f"frame {i}", frame, ("?",))


def _defocus_stack(folder: Path) -> Iterator[Case]:
    """Microtubules, 0.05 um a frame; which frames are sharp, see ``_by_defocus``."""
    for file in sorted(folder.glob("*.tif")):
        yield _by_defocus(file, (51 - int(file.stem[-4:])) * 0.05)


def _defocus_single(folder: Path) -> Iterator[Case]:
    """Take single frames of the same cell; which are sharp, see ``_by_defocus``."""
    for file in sorted(folder.glob("*.tif")):
        _, off, label = file.stem.partition("Off")
        sign = -1 if label.startswith("M") else 1
        yield _by_defocus(file, sign * float(label[1:4].replace("p", ".")) if off else 0.0)


def _by_defocus(file: Path, defocus_um: float) -> Case:
    """Sort a frame by the defocus its authors state, and by nothing that is in it.

    Half a depth of field, by Rayleigh's quarter wave, is n l / (2 NA^2) = 0.29 um for
    water (n = 1.33), green light (l = 0.52 um) and NA 1.1, what light sheets of this
    kind are commonly viewed with (the files do not say). Sharp: within that, to the
    next 0.1 um. Blurred: twice as far and beyond. In between: left out.
    """
    away = abs(defocus_um) + 1e-9
    right = () if away <= 0.3 + 1e-6 else ("blurred",) if away >= 0.6 else ("?",)
    return Case(f"{defocus_um:+.2f} um", _read(file), right)


def _bbbc006(folder: Path) -> Iterator[Case]:
    """Nuclei, sorted in and out of focus by the set's authors."""
    for file in sorted((folder / "in_focus").iterdir()):
        yield Case(file.stem, _read(file), ())
    for file in sorted((folder / "out_of_focus").iterdir()):
        yield Case(file.stem, _read(file), ("blurred",))


def _all_good(folder: Path) -> Iterator[Case]:
    """Frames published with hand-drawn masks: all are to be accepted."""
    for file in sorted(folder.iterdir()):
        yield Case(file.stem, _read(file), ())


REAL_SETS: tuple[tuple[str, str, Callable[[Path], Iterator[Case]]], ...] = (
    ("beads through focus", "beads/sample_zstack", _bead_stack),
    ("microtubules, stack", "defocus/microtubules/stack", _defocus_stack),
    ("microtubules, single", "defocus/microtubules/single", _defocus_single),
    ("BBBC006 nuclei", "focus_bbbc006", _bbbc006),
    ("N2DH-GOWT1 nuclei", "N2DH-GOWT1/image", _all_good),
    ("N2DL-HeLa nuclei", "N2DL-HeLa/image", _all_good),
    ("ISBI 2012 membranes, EM", "isbi2012/image", _all_good),
    ("EPFL hippocampus, EM", "epfl/image", _all_good),
)


def _read(file: Path) -> NDArray[Any]:
    if file.suffix == ".tif":
        frame = tifffile.imread(file)
    else:
        frame = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    return frame if frame.ndim == 2 else np.ascontiguousarray(frame[..., 0])


# --- tables ----------------------------------------------------------------------------


def print_confusion(title: str, seen: list[tuple[Case, str]], show_errors: bool) -> None:
    """Print recall and precision per reason, and of accepting at all."""
    print(f"\n{title}: {len(seen)} frames")
    for reason in REASONS:
        right = [(case, given) for case, given in seen if case.right[:1] == (reason,)]
        given_it = [(case, given) for case, given in seen if given == reason]
        if not right:
            continue
        hit = sum(given in case.right for case, given in right)
        rejected = sum(bool(given) for _, given in right)
        correct = sum(reason in case.right for case, _ in given_it)
        precision = correct / len(given_it) if given_it else math.nan
        print(
            f"  {reason:13s} {len(right):5d} frames  recall {hit / len(right):.3f}"
            f"  precision {precision:.3f}  rejected for any reason {rejected / len(right):.3f}"
        )
    print(f"  {_balance(seen)}")
    if show_errors:
        wrong = Counter(
            (case.name, given or "accepted")
            for case, given in seen
            if (given not in case.right) and not (not case.right and not given)
        )
        for (name, given), count in wrong.most_common(20):
            print(f"    {name} -> {given}: {count}")


def _balance(seen: list[tuple[Case, str]]) -> str:
    good = [given for case, given in seen if not case.right]
    bad = [given for case, given in seen if case.right]
    kept = sum(not given for given in good) / len(good) if good else math.nan
    line = f"accepted of the good {kept:.3f} ({len(good)})"
    if bad:
        caught = sum(bool(given) for given in bad) / len(bad)
        line += f", rejected of the bad {caught:.3f} ({len(bad)})"
        line += f", balanced accuracy {(kept + caught) / 2:.3f}"
    return line


def print_real(data: Path, show_errors: bool) -> None:
    """Judge each real set as one run; frames marked ``?`` are judged but not counted."""
    print("\nReal sets, each judged as one run")
    for name, folder, cases_of in REAL_SETS:
        if not (data / folder).is_dir():
            print(f"  {name}: {data / folder} is not there")
            continue
        cases = list(cases_of(data / folder))
        top = max(int(case.pixels.max()) for case in cases)
        given = judge_run(cases, 255 if top <= 255 else 65535)
        seen = [(c, g) for c, g in zip(cases, given, strict=True) if c.right != ("?",)]
        print(f"  {name:24s} {_balance(seen)}")
        if show_errors:
            for case, reason in zip(cases, given, strict=True):
                print(f"      {case.name[:50]:50s} {'/'.join(case.right) or 'good':15s} {reason}")


def print_cost() -> None:
    """Time each part of the measuring of one full frame of the camera."""
    frame, _ = draw(Scene(), np.random.default_rng(1))
    noise = measure(frame, CEILING).noise_sigma or 0.0
    maps = structure.map_cells(frame, noise)
    judge, found = Judge(QualitySettings()), measure(frame, CEILING)
    keys = iter(range(10**6))
    for _ in range(256):
        judge.judge(key := next(keys), found, str(key), "")
    parts: list[tuple[str, Callable[[], object]]] = [
        ("levels, exposure, background", lambda: measures.count_levels(frame)),
        ("noise", lambda: measures.estimate_noise(frame, 0.3)),
        ("structure by octave and cell", lambda: structure.map_cells(frame, noise)),
        ("empty, signal, focus from cells", lambda: structure.find(maps, noise, CEILING)),
        ("zero tail", lambda: tears.zero_tail_rows(frame)),
        ("joined exposures", lambda: tears.find_tear(frame, noise)),
        ("all measures", lambda: measure(frame, CEILING)),
        ("verdict, 256 frames known", lambda: judge.judge(key := next(keys), found, str(key), "")),
        ("SHA-256 of the pixels, for scale", lambda: hashlib.sha256(frame.tobytes()).digest()),
    ]
    cv2.setNumThreads(1)
    print(f"\nCost on {frame.shape[1]}x{frame.shape[0]} uint16, one core, median of 60")
    for name, call in parts:
        took = []
        for _ in range(60):
            start = time.process_time()
            call()
            took.append(time.process_time() - start)
        print(f"  {name:34s} {1e3 * float(np.median(took)):6.2f} ms of processor time")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the real sets")
    parser.add_argument("--runs", type=int, default=40, help="simulated bead runs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--errors", action="store_true", help="list what went wrong")
    args = parser.parse_args()
    seen: list[tuple[Case, str]] = []
    for i in range(args.runs):
        cases = bead_run(np.random.default_rng([args.seed, i]), (540, 720))
        seen += zip(cases, judge_run(cases, CEILING), strict=True)
    print_confusion(f"Simulated bead runs ({args.runs} scenes)", seen, args.errors)
    for i, name in enumerate(TEXTURES):
        seen = []
        for k in range(max(args.runs // 8, 1)):
            cases = texture_run(name, np.random.default_rng([args.seed, 7, i, k]))
            seen += zip(cases, judge_run(cases, CEILING), strict=True)
        print_confusion(f"Simulated {name}", seen, args.errors)
    if args.data:
        print_real(args.data, args.errors)
    print_cost()


if __name__ == "__main__":
    main()
