"""``segbatch selftest``: the golden frame through every engine that this machine offers.

The frame is simulated from a seed, so that it is the same on every machine; what the shipped
network says of it is written down in the package (``golden.json``).
"""

from __future__ import annotations

import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from segbatch import __version__
from segbatch.acquire.simulate.kinds import scene_of_run
from segbatch.acquire.simulate.scene import draw
from segbatch.errors import SegbatchError
from segbatch.infer.engine.choice import (
    BUILT_IN,
    TENSORRT,
    load_fitting,
    trial_of,
    why_no_tensorrt,
)
from segbatch.infer.engine.machine import available_threads, processor_id
from segbatch.infer.engine.made.artifact import Likeness, engines_of, kind_of
from segbatch.infer.engine.made.likeness import PASSING_AGREEMENT, Answer, judge, likeness
from segbatch.infer.engine.made.tables import LIKENESS, figures, print_table
from segbatch.infer.engine.manifest import Model
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.segment import Segmentation, Segmenter
from segbatch.settings import Settings

SCHEMA = "segbatch.selftest/1"
SEED, BIT_DEPTH = 2026, 10
SMALL_SHAPE, REPEATS = (270, 360), 4  # four times four of it are a sensor's 1080 x 1440 pixels
TIMED_S = 2.0
# Part by which a figure may be off: the simulation's transforms round as the processor does.
LIKE_EXPECTED = 0.01
KINDS = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "fp16"),
    ("openvino", "int8"),
    *((flavour, precision) for flavour in TENSORRT for precision in ("fp32", "fp16", "int8")),
)


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is expected of the golden frame: its counts, and the reference engine's answer."""

    counts: int
    foreground_fraction: float
    object_count: int
    mean_confidence: float
    mean_entropy: float
    iou_with_truth: float


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One engine and precision; ``why`` says why it is not offered, or what failed.

    ``frame_shape`` is that of the frame that it was given: of an engine that is for other frames
    than the golden one, part of it, or it repeated.

    Not offered is what was not made, is not installed, or what this processor does not compute
    in; what was made for this user and is refused has failed.
    """

    engine: str
    precision: str
    outcome: str  # passed, failed or not offered
    version: str = ""
    likeness: Likeness | None = None
    iou_with_truth: float | None = None
    frames_per_s: float | None = None
    frame_shape: tuple[int, int] | None = None
    why: str = ""


def selftest_command(*, as_json: bool) -> int:
    """Print what every engine makes of the golden frame; return 3 where one fails."""
    frame, truth = golden_frame()
    model = open_model("")
    reference, lines = _reference(model, frame, truth)
    if reference is not None:
        for kind in KINDS[1:]:
            click.echo(f"trying {' '.join(kind)}", err=True)
            lines.append(_line(model, kind, frame, truth, reference))
    told = machine()
    if as_json:
        answer = {"schema": SCHEMA, "machine": told, "engines": lines}
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
    else:
        _print(told, lines)
    return 3 if any(line.outcome == "failed" for line in lines) else 0


def golden_frame() -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Return the golden frame (1080, 1440), 10 bits, and its true mask."""
    rng = np.random.default_rng(SEED)
    frame, truth = draw(scene_of_run(rng, *SMALL_SHAPE), rng)
    times = (REPEATS, REPEATS)
    return np.tile(frame, times), np.tile(truth, times)


def expected() -> Golden:
    """Return what the package says of the golden frame."""
    return msgspec.json.decode(Path(__file__).with_name("golden.json").read_bytes(), type=Golden)


def measured(frame: NDArray[np.uint16], truth: NDArray[np.uint8], found: Segmentation) -> Golden:
    """Return the same figures as they are found here."""
    return Golden(
        counts=int(frame.sum(dtype=np.int64)),
        foreground_fraction=found.foreground_fraction,
        object_count=found.object_count,
        mean_confidence=found.mean_confidence,
        mean_entropy=found.mean_entropy,
        iou_with_truth=_iou(found.mask, truth),
    )


def machine() -> dict[str, Any]:
    """Return what a report has to say of the machine."""
    from segbatch.infer.engine.tensorrt.driver import ask_driver

    gpu = ask_driver()
    return {
        "segbatch": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_id(),
        "threads": available_threads(),
        "gpu": gpu if isinstance(gpu, str) else f"{gpu.name}, driver {gpu.driver}, CUDA {gpu.cuda}",
    }


def _reference(
    model: Model, frame: NDArray[np.uint16], truth: NDArray[np.uint8]
) -> tuple[Answer | None, list[Line]]:
    """Run the reference engine and hold it against what the package expects."""
    engine, precision = KINDS[0]
    try:
        with _open(model, KINDS[0]) as segmenter:
            found = segmenter.segment(frame, BIT_DEPTH, probabilities=True)
            speed = _frames_per_s(segmenter, frame)
            version = segmenter.version
    except SegbatchError as error:
        return None, [Line(engine=engine, precision=precision, outcome="failed", why=str(error))]
    here = measured(frame, truth, found)
    off = [
        f"{key} is {value:g}, expected {wanted:g}"
        for (key, value), wanted in zip(
            msgspec.structs.asdict(here).items(), msgspec.structs.astuple(expected()), strict=True
        )
        if abs(value - wanted) > LIKE_EXPECTED * abs(wanted)
    ]
    off += _refused(model, KINDS[0])
    answer = Answer(found.mask, found.probabilities)
    line = Line(
        engine=engine,
        precision=precision,
        outcome="failed" if off else "passed",
        version=version,
        iou_with_truth=here.iou_with_truth,
        frames_per_s=speed,
        frame_shape=(frame.shape[0], frame.shape[1]),
        why="; ".join(off),
    )
    return answer, [line]


def _line(
    model: Model,
    kind: tuple[str, str],
    frame: NDArray[np.uint16],
    truth: NDArray[np.uint8],
    reference: Answer,
) -> Line:
    engine, precision = kind
    given: dict[str, Any] = {"engine": engine, "precision": precision}
    if refused := _refused(model, kind):
        return Line(**given, outcome="failed", why="; ".join(refused))
    if engine in TENSORRT and (why := why_no_tensorrt(engine)):
        return Line(**given, outcome="not offered", why=why)
    try:
        segmenter = _open(model, kind)
    except SegbatchError as error:
        remedy = f"; {error.remedy}" if error.remedy.startswith("segbatch export") else ""
        outcome = "failed" if _ought_to_run(model, kind) else "not offered"
        return Line(**given, outcome=outcome, why=f"{error.got}{remedy}")
    try:
        with segmenter:
            shape = segmenter.suited(golden_shape := (frame.shape[0], frame.shape[1]))
            if shape != golden_shape:
                frame, truth = _cut_or_repeated(frame, shape), _cut_or_repeated(truth, shape)
                reference = _of_reference(model, frame)
            found = segmenter.segment(frame, BIT_DEPTH, probabilities=True)
            mask = segmenter.segment(frame, BIT_DEPTH).mask
            speed = _frames_per_s(segmenter, frame)
            version = segmenter.version
    except SegbatchError as error:
        return Line(**given, outcome="failed", why=str(error))
    alike = likeness("the golden frame", [reference], [Answer(mask, found.probabilities)])
    verdict = judge([alike], PASSING_AGREEMENT, "onnxruntime fp32")
    return Line(
        **given,
        outcome="passed" if verdict.passed else "failed",
        version=version,
        likeness=alike,
        iou_with_truth=_iou(mask, truth),
        frames_per_s=speed,
        frame_shape=shape,
        why="" if verdict.passed else "its masks are not the reference's",
    )


def _cut_or_repeated(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return the golden frame's upper left part, or the frame repeated, for a shape."""
    times = [-(-wanted // there) for wanted, there in zip(shape, image.shape, strict=True)]
    return np.ascontiguousarray(np.tile(image, times)[: shape[0], : shape[1]])


def _of_reference(model: Model, frame: NDArray[np.uint16]) -> Answer:
    """Return what the reference engine says of another frame than the golden one."""
    with _open(model, KINDS[0]) as segmenter:
        found = segmenter.segment(frame, BIT_DEPTH, probabilities=True)
    return Answer(found.mask, found.probabilities)


def _made(model: Model, kind: tuple[str, str]) -> list[Path]:
    """Return the manifests of the engines that were made of one kind."""
    found = engines_of(model.file.with_suffix(".json"), model.manifest.sha256)
    return [file for file in found if kind_of(file) == kind]


def _refused(model: Model, kind: tuple[str, str]) -> list[str]:
    """Say what is wrong with the engines that were made of one kind."""
    said = []
    for file in _made(model, kind):
        try:
            load_fitting(file, model.manifest.sha256)
        except SegbatchError as error:
            said.append(f"{error.got}; {error.remedy}")
    return said


def _ought_to_run(model: Model, kind: tuple[str, str]) -> bool:
    """Tell whether an engine that cannot be opened was made, or should run on this processor."""
    return bool(_made(model, kind)) or (kind in BUILT_IN and not trial_of(model, *kind).unfit)


def _open(model: Model, kind: tuple[str, str]) -> Segmenter:
    settings = msgspec.convert({"engine": kind[0], "precision": kind[1]}, Settings)
    return Segmenter(model, settings)


def _frames_per_s(segmenter: Segmenter, frame: NDArray[np.uint16]) -> float:
    """Segment the frame over and over, as many at a time as the engine is made for."""

    def one(_: int) -> None:
        segmenter.segment(frame, BIT_DEPTH)

    started = time.perf_counter()
    one(0)
    each_s = time.perf_counter() - started
    many = max(2 * segmenter.streams, round(TIMED_S / each_s))
    with ThreadPoolExecutor(segmenter.streams) as pool:
        started = time.perf_counter()
        for _ in pool.map(one, range(many)):
            pass
        return many / (time.perf_counter() - started)


def _iou(mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    both, either = (mask > 0) & (truth > 0), (mask > 0) | (truth > 0)
    return int(np.count_nonzero(both)) / max(1, int(np.count_nonzero(either)))


def _print(told: dict[str, Any], lines: list[Line]) -> None:
    for key, value in told.items():
        click.echo(f"{key}: {value}")
    words = ("engine", "precision", "outcome")
    headings = (*words[:2], *LIKENESS, "IoU true", "frames/s", words[2])
    print_table(headings, [_cells(line) for line in lines], words=words)
    click.echo(
        "p: difference of probabilities from onnxruntime fp32; mask: pixels of the same class; "
        "IoU true: with the true mask"
    )
    reasons: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if line.why:
            reasons.setdefault((line.engine, line.why), []).append(line.precision)
    for (engine, why), precisions in reasons.items():
        click.echo(f"{engine} {', '.join(precisions)}: {why}")
    for line in lines:
        if line.frame_shape is not None and line.frame_shape != lines[0].frame_shape:
            y, x = line.frame_shape
            click.echo(
                f"{line.engine} {line.precision}: on {y} x {x} px of the golden frame (repeated "
                "where that is more), which its engine is for; frames/s are of these"
            )


def _cells(line: Line) -> list[str]:
    true = "" if line.iou_with_truth is None else f"{line.iou_with_truth:.2%}"
    speed = "" if line.frames_per_s is None else f"{line.frames_per_s:.1f}"
    return [line.engine, line.precision, *figures(line.likeness), true, speed, line.outcome]
