"""From any ONNX graph to a model: same-sized logits, measured, with their manifest."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segbatch.errors import EngineError, ModelError, StorageError
from segbatch.infer.decide import sigmoid
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.digest import sha256_of
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.manifest import Manifest, Source, write_manifest
from segbatch.infer.engine.network.halo import measure_tiling
from segbatch.learn.intake import edit
from segbatch.learn.intake.graph import vetted
from segbatch.learn.intake.look import (
    answers_probabilities,
    channels_refused,
    check_batches,
    find_sizes,
    same_answers,
    strips,
)
from segbatch.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segbatch.learn.intake.facts import Activation, Facts, Run, Wishes

MOST_CLASSES = 255  # of an 8-bit mask
log = get_logger(__name__)


def finish(model: Any, facts: Facts, wishes: Wishes, folder: Path) -> Path:
    """Write ``NAME.onnx`` and ``NAME.json`` into ``folder`` and return the latter.

    Parameters
    ----------
    model
        A vetted ONNX network of any input and output names, free or stated sizes, with or
        without an activation at its end, same-sized or smaller output.
    facts
        What its source said.
    wishes
        What the caller said.
    folder
        Exists.

    Raises
    ------
    ModelError
        Looking at it shows that it cannot be run on frames of any size.
    StorageError
        The files cannot be written.
    """
    told = str(facts.files[0])
    facts.settle(wishes)
    log.info("trying the network on noise")
    edit.one_in_one_out(model, told, wishes.output)
    inside = edit.strip_activation(model)
    edit.name_ends(model)
    stated = edit.sides_of(edit.inputs_of(model)[0])
    channels = stated[1]
    if None not in stated:
        _free_and_compare(model, stated, told)
    edit.free_axes(model)
    with running(model) as run:
        channels, sizes = find_sizes(_shapes(run), channels, told)
        _refuse_no_numbers(model, run, channels, sizes.first, told)
        seen = answers_probabilities(run, channels, sizes.first, sizes.outputs)
        check_batches(run, channels, sizes.first, told)
    if channels not in (1, 3):
        raise channels_refused(channels, told)
    activation = _activation(inside, facts.outside, seen, sizes.outputs, told)
    facts.activated = activation != "none"
    if facts.cut and not facts.activated:
        raise ModelError(
            f"{told}: logits that are cut to 0 and 1", "logits, or probabilities", "use another"
        )
    if facts.cutoff is not None and facts.threshold is None:
        facts.threshold = facts.cutoff if facts.activated else _probability(facts.cutoff)
    if inside == "none" and seen in ("sigmoid", "softmax"):
        edit.undo_activation(model, activation)
    outputs = _classes(model, facts, wishes, activation, sizes.outputs, told)
    if sizes.shrink:
        edit.mirror(model, sizes.before, sizes.after, sizes.surplus)
    edit.prepend(model, facts.before)
    edit.state_channels(model, channels, outputs)
    model = vetted(model, told)
    return _write(model, facts, folder, channels, outputs, sizes.after if sizes.shrink else 0)


def _refuse_no_numbers(model: Any, run: Run, channels: int, side: int, told: str) -> None:
    """Raise ModelError where noise is answered by NaN or infinity."""
    if np.isfinite(run(strips(channels, side, side)[0])).all():
        return
    odd = edit.not_finite(model)
    raise ModelError(
        f"{told}: {f'weights {odd} hold NaN or infinity' if odd else 'answers NaN or infinity'}",
        "finite weights and answers",
        "take an earlier checkpoint: its training had diverged",
    )


def _free_and_compare(model: Any, stated: list[int | None], told: str) -> None:
    """Free the axes of a model of one size, and see that at that size nothing changed."""
    with running(model) as bound:
        edit.free_axes(model)
        with running(model) as free:
            same_answers(bound, free, [tuple(side or 1 for side in stated)], told)


def _activation(
    inside: Activation, outside: Activation, seen: str, outputs: int, told: str
) -> Activation:
    """Return the one activation of the answers, by graph, source and look; ``none`` if none."""
    if seen == "decisions":
        raise ModelError(
            f"{told}: answers of zeros and ones only",
            "logits or probabilities",
            "export it without its threshold",
        )
    looked: Activation = "none"
    if inside == "none" and seen != "none":
        looked = "softmax" if seen == "softmax" else "sigmoid"
    found = [each for each in (inside, outside, looked) if each != "none"]
    if len(found) > 1:
        raise ModelError(
            f"{told}: answers that are probabilities, and {outside} still to be applied",
            "one activation, in the network or after it",
            "correct the package, or export the network without its activation",
        )
    if found == ["softmax"] and outputs == 1:
        raise ModelError(f"{told}: softmax of one channel", "two channels or more, or sigmoid")
    return found[0] if found else "none"


def _probability(logit: float) -> float:
    return float(sigmoid(np.array(logit, np.float32)))


def _classes(
    model: Any, facts: Facts, wishes: Wishes, activation: Activation, outputs: int, told: str
) -> int:
    """Settle what the channels mean; return how many are left."""
    if wishes.channel is not None:
        if not 0 <= wishes.channel < outputs:
            raise ModelError(f"{told}: channel {wishes.channel}", f"0 to {outputs - 1}")
        if activation == "softmax":
            raise ModelError(
                f"{told}: one channel of classes that exclude each other",
                "all channels: the most probable class wins",
                "leave --channel out",
            )
        edit.pick_channel(model, wishes.channel)
        outputs = 1
    elif outputs > 1 and activation == "sigmoid":
        raise ModelError(
            f"{told}: {outputs} probabilities that do not exclude each other",
            "one channel, or classes of which one wins",
            f"take one with --channel 0 to {outputs - 1}",
        )
    if outputs > MOST_CLASSES:
        raise ModelError(f"{told}: {outputs} channels", f"at most {MOST_CLASSES}")
    if activation == "none":
        facts.assumed.append(
            "the answers are logits, no activation was found: "
            + ("sigmoid" if outputs == 1 else "softmax")
        )
    if outputs > 1:
        facts.assumed.append("channel 0 is the background")
    if facts.threshold is not None and not 0 < facts.threshold < 1:
        raise ModelError(
            f"{told}: threshold {facts.threshold:g}", "a probability between 0 and 1", "correct it"
        )
    if outputs > 1 and facts.threshold is not None:
        raise ModelError(
            f"{told}: a threshold of {facts.threshold:g} with {outputs} classes",
            "no threshold: the most probable class wins",
            "leave --threshold out",
        )
    count = max(1, outputs - 1)
    if facts.classes is not None and len(facts.classes) == outputs > 1:
        facts.classes = facts.classes[1:]
    if len(facts.classes_or_assumed(count)) != count:
        raise ModelError(
            f"{told}: {len(facts.classes or [])} class names, {outputs} output channels",
            f"{count} names" + (", the background has none" if outputs > 1 else ""),
            "give them with --class",
        )
    return outputs


def _write(
    model: Any, facts: Facts, folder: Path, channels: int, outputs: int, margin_px: int
) -> Path:
    content = bytes(model.SerializeToString(deterministic=True))
    network = folder / f"{facts.name}.onnx"
    try:
        network.write_bytes(content)
        log.info("finding the network's halo")
        tiling = measure_tiling(network, channels, available_threads(), margin_px=margin_px)
        normalisation = facts.normalisation_or_assumed()
        if outputs == 1 and facts.threshold is None:
            facts.assumed.append("threshold: 0.5 (--threshold)")
        manifest = Manifest(
            name=facts.name,
            file=network.name,
            sha256=hashlib.sha256(content).hexdigest(),
            input_channels=channels,  # type: ignore[arg-type]
            classes=facts.classes_or_assumed(max(1, outputs - 1)),
            output="sigmoid" if outputs == 1 else "softmax",
            normalisation=normalisation,
            stride=tiling.stride,
            halo_px=tiling.halo_px,
            exact_tiling=tiling.exact,
            margin_px=margin_px,
            threshold=0.5 if facts.threshold is None else facts.threshold,
            pixel_size_um=facts.pixel_size_um,
            command=facts.command,
            training=facts.training,
            metrics=facts.metrics,
            source=Source(
                kind=facts.kind,
                name=facts.files[0].name,
                assumed=facts.assumed,
                files={
                    os.path.relpath(file, facts.files[0].parent.resolve())
                    if place
                    else file.name: sha256_of(file)
                    for place, file in enumerate(facts.files)
                },
            ),
        )
        manifest_file = network.with_suffix(".json")
        write_manifest(manifest, manifest_file)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}",
            "a folder with room for the network",
            "make room there, or name another folder",
        ) from error
    return manifest_file


@contextmanager
def running(model: Any) -> Iterator[Run]:
    """Lend a function that runs a model with the reference engine."""
    with tempfile.TemporaryDirectory(prefix="segbatch-") as folder:
        file = Path(folder) / "network.onnx"
        file.write_bytes(model.SerializeToString())
        engine = OnnxRuntimeEngine(file, available_threads())
        try:
            yield engine.run
        finally:
            engine.close()


def _shapes(run: Run) -> Any:
    """Return what ``find_sizes`` asks."""

    def shapes(channels: int, y: int, x: int) -> tuple[int, ...] | None:
        try:
            return run(np.zeros((1, channels, y, x), np.float32)).shape
        except EngineError:
            return None

    return shapes
