"""The gate compares and times engines of any one shape: tiles, batches, larger frames."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from segbatch.errors import EngineError
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.made.artifact import Shape, write_artifact
from segbatch.infer.engine.manifest import Model
from segbatch.learn.export.candidates import make
from segbatch.learn.export.command import rebuild_wish
from segbatch.learn.export.frames import Material, gather
from segbatch.learn.export.gate import answer, comparable, compare, time_in_turns
from tests.infer.conftest import MakeModel
from tests.infer.fixed import fixed_engine
from tests.infer.rtx import needs_rtx
from tests.infer.test_segment import complete

pytestmark = pytest.mark.learn
FRAME = (150, 200)
SHAPES = [(1, 1, 152, 200), (3, 1, 152, 200), (1, 1, 96, 96), (4, 1, 96, 96), (2, 1, 256, 320)]


def judged(model: Model, material: Material, shape: Shape, other: Model | None = None) -> float:
    """Return the least mask agreement of an engine of one shape with its network."""
    source, engine = OnnxRuntimeEngine(model.file, 1), fixed_engine(other or model, shape)
    wanted = [[answer(source, each, model.manifest) for each in s.inputs] for s in material.sets]
    verdict = compare(engine, material.sets, wanted, model.manifest, 0.999, "")
    largest = max(each.max_probability_difference or 0.0 for each in verdict.likeness)

    assert (largest < 1e-4) == (other is None)
    return min(each.mask_agreement for each in verdict.likeness)


def halved(make_model: MakeModel, **options: int) -> Model:
    """Return a model whose mask is about half of noise."""
    model = complete(make_model(net=options))
    image = gather(model, None, FRAME).sets[0].inputs[0]
    found = answer(OnnxRuntimeEngine(model.file, 1), image, model.manifest).probabilities
    assert found is not None
    return complete(make_model(net=options, threshold=float(np.median(found))))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_engine_of_one_shape_is_its_network(shape: Shape, make_model: MakeModel) -> None:
    """Whatever tiles and batch an engine takes, it is compared as `process` would run it."""
    model = halved(make_model)

    assert judged(model, gather(model, None, FRAME), shape) > 0.999


@pytest.mark.parametrize("shape", SHAPES)
def test_an_engine_of_another_network_shows(shape: Shape, make_model: MakeModel) -> None:
    """An engine of any shape that computes something else does not agree."""
    model = halved(make_model)
    material = gather(model, None, FRAME)
    other = complete(make_model("other", net={"seed": 9}))

    assert judged(model, material, shape, other) < 0.999


def test_tiles_without_a_halo_do_not_pass(make_model: MakeModel) -> None:
    """A halo that the network does not keep to shows in an engine of tiles."""
    model = complete(make_model(stride=4, halo_px=0, exact_tiling=True))
    source, engine = OnnxRuntimeEngine(model.file, 1), fixed_engine(model, (2, 1, 96, 96))
    image = gather(model, None, FRAME).sets[0].inputs[0]
    right, got = (answer(each, image, model.manifest) for each in (source, engine))

    assert right.probabilities is not None
    assert got.probabilities is not None
    assert np.abs(right.probabilities - got.probabilities).max() > 1e-3


def test_an_engine_for_much_larger_frames_is_not_compared(make_model: MakeModel) -> None:
    """Where a frame has no pixel that the engine sees as the network does, that is said."""
    model = complete(make_model())
    image = gather(model, None, (16, 16)).sets[0].inputs[0]

    with pytest.raises(EngineError, match="16 x 16"):
        comparable(fixed_engine(model, (1, 1, 256, 256)), image, model.manifest)


def test_an_engine_of_tiles_is_timed_by_the_frame(make_model: MakeModel) -> None:
    """The time of an engine is that of all requests of a frame, whatever its batch."""
    model = complete(make_model())
    image = gather(model, None, FRAME).sets[0].inputs[0]
    engine = fixed_engine(model, (4, 1, 96, 96))
    asked = []
    lend = engine.request
    engine.request = lambda shape, streams: (asked.append(shape), lend(shape, streams))[1]  # type: ignore[method-assign]
    _, rounds = time_in_turns({"tiles": engine}, image, model.manifest)

    assert asked == [(4, 1, 96, 96)] * 3 * (rounds + 1)


def test_frames_larger_than_is_compared_are_planned_for(make_model: MakeModel) -> None:
    """Frames are compared in part, and their whole size is known to who plans an engine."""
    model = complete(make_model())
    material = gather(model, None, (64, 3000))

    assert material.frame_shape == (64, 2048)
    assert material.whole_shape == (64, 3000)


@needs_rtx
def test_an_engine_is_planned_for_the_frames_it_is_for(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that fit are one tile of a batch of one; larger ones are tiles, several in a batch."""
    model = complete(make_model())
    material = gather(model, None, (64, 3000))
    folder = model.file.parent
    kind = ("tensorrt_rtx", "fp32")
    whole = make(model, kind, material, folder, []).choice.artifact
    monkeypatch.setattr("segbatch.infer.engine.tensorrt.fitting.LARGEST_TILE_PX", 64 * 1024)
    tiled = make(model, kind, material, folder, [])
    artifact = tiled.choice.artifact

    assert whole is not None
    assert whole.manifest.input_shape == (1, 1, 64, 3000)
    assert artifact is not None
    assert artifact.manifest.input_shape == (4, 1, 64, 788)
    assert tiled.options["frame_shape"] == [64, 3000]


@needs_rtx
@pytest.mark.parametrize(
    ("planned", "wanted"), [([64, 3000], (64, 3000)), ([0, 3000], None), ("64x3000", None)]
)
def test_an_engine_is_made_again_for_its_frames(
    planned: object, wanted: tuple[int, int] | None, make_model: MakeModel
) -> None:
    """`--rebuild` plans for the frames that the engine was planned for, where its manifest says."""
    model = complete(make_model())
    material = gather(model, None, (64, 128))
    folder = model.file.parent
    artifact = make(model, ("tensorrt_rtx", "fp32"), material, folder, []).choice.artifact
    assert artifact is not None
    changed = msgspec.structs.replace(artifact.manifest, options={"frame_shape": planned})
    write_artifact(changed, artifact.manifest_file)

    assert rebuild_wish(artifact.manifest_file).frame_shape == wanted
