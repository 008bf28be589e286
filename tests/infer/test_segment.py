"""Frames become masks: the same mask whatever the engine, the tiles and the threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from segbatch.errors import EngineError, SettingsError, UsageError
from segbatch.infer.blend import axis_weights
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.manifest import DatasetMax, Model, Percentile, ZScore
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.normalise import apply, scale_of, seen_by
from segbatch.infer.segment import Segmenter
from segbatch.infer.tiles import axis
from segbatch.settings import Settings
from tests.infer.conftest import MakeModel

ENGINES = ["openvino", "onnxruntime"]
NETWORKS: dict[str, dict[str, Any]] = {
    "transposed": {},
    "nearest": {"up": "nearest"},
    "linear": {"up": "linear"},
    "deep": {"depth": 3, "base": 2},
    "colour": {"channels": 3},
    "classes": {"outputs": 4},
}


def complete(model: Model) -> Model:
    """Return the model with stride and halo measured."""
    return open_model(model.file.with_suffix(".json"))


def whole_frame(model: Model, pixels: NDArray[Any], bit_depth: int = 10) -> NDArray[np.float32]:
    """Return probabilities (K, Y, X) as the definition says: one frame, padded once, one run."""
    manifest = model.manifest
    pixels = seen_by(pixels, manifest.input_channels)
    out = np.empty((manifest.input_channels, *pixels.shape[:2]), np.float32)
    apply(pixels, *scale_of(pixels, manifest.normalisation, bit_depth), out)
    stride = manifest.stride or 1
    room = [(0, 0), (0, -out.shape[1] % stride), (0, -out.shape[2] % stride)]
    engine = OnnxRuntimeEngine(model.file, 1)
    logits = engine.run(np.pad(out, room, mode="reflect")[None])[0].astype(np.float64)
    engine.close()
    logits = logits[:, : pixels.shape[0], : pixels.shape[1]]
    if manifest.output == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
    scores = np.exp(logits - logits.max(axis=0))
    return np.asarray(scores / scores.sum(axis=0), np.float32)


def settings(**given: Any) -> Settings:
    """Return settings with two threads unless told."""
    return Settings(**{"threads": 2, "precision": "fp32", **given})


def probabilities_of(model: Model, pixels: NDArray[Any], **given: Any) -> NDArray[np.float32]:
    """Return the probabilities of one frame, (Y, X) or (K, Y, X)."""
    with Segmenter(model, settings(**given)) as segmenter:
        found = segmenter.segment(pixels, 10, probabilities=True).probabilities
    assert found is not None
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("network", NETWORKS)
def test_tiled_equals_whole_frame(
    network: str, engine: str, make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """Tiles of the measured halo give the whole frame's probabilities to 1e-4."""
    model = complete(make_model(net=NETWORKS[network]))
    side = 2 * (model.manifest.halo_px or 0) + 40
    tiled = probabilities_of(model, frame, engine=engine, tile_px=side)

    assert np.abs(tiled - whole_frame(model, frame).squeeze()).max() <= 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_shipped_model_tiled_equals_whole_frame(engine: str, frame: NDArray[np.uint16]) -> None:
    """The shipped network's tiles give its whole frame's probabilities to 1e-4."""
    model = open_model("")
    tiled = probabilities_of(model, frame, engine=engine, tile_px=128)

    assert np.abs(tiled - whole_frame(model, frame).squeeze()).max() <= 1e-4


def test_a_smaller_halo_would_show(make_model: MakeModel, frame: NDArray[np.uint16]) -> None:
    """Without its halo the same network's tiles differ, so the equality above proves something."""
    model = complete(make_model())
    cut = Model(msgspec.structs.replace(model.manifest, halo_px=0), model.file)
    tiled = probabilities_of(cut, frame, tile_px=64)

    assert np.abs(tiled - whole_frame(model, frame)[0]).max() > 1e-2


@pytest.mark.parametrize("network", ["transposed", "classes"])
def test_little_memory_changes_no_mask(
    network: str, make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """A frame cut to fit a small memory_gib has the mask of the whole frame."""
    model = complete(make_model(net=NETWORKS[network]))
    with Segmenter(model, settings()) as segmenter:
        whole = segmenter.segment(frame, 10)
        need = segmenter._opened.bytes_per_px * 64 * 200
        fixed = 2.0 * (1 << 30) - segmenter._opened.memory_bytes
    with Segmenter(model, settings(memory_gib=(fixed + need) / (1 << 30))) as segmenter:
        cut = segmenter.segment(frame, 10)
        assert segmenter._layout(frame.shape).grid.count > 4

    assert np.array_equal(cut.mask, whole.mask)
    assert cut.object_count == whole.object_count
    assert cut.mean_confidence == pytest.approx(whole.mean_confidence, abs=1e-6)
    assert cut.mean_entropy == pytest.approx(whole.mean_entropy, abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_change_nothing(
    engine: str, make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """Tiles given to the engine three at a time, the last batch not full, give the same."""
    model = complete(make_model())
    one, three = (
        probabilities_of(model, frame, engine=engine, tile_px=96, batch=batch) for batch in (1, 3)
    )

    assert np.abs(one - three).max() <= 1e-5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (3, 4), (5, 61)])
def test_tiny_frames_are_segmented(
    shape: tuple[int, int], engine: str, make_model: MakeModel
) -> None:
    """Frames smaller than the stride are mirrored out and give a mask of their own shape."""
    model = complete(make_model())
    pixels = np.random.default_rng(0).integers(0, 1024, shape).astype(np.uint16)
    with Segmenter(model, settings(engine=engine)) as segmenter:
        found = segmenter.segment(pixels, 10, labels=True)

    assert found.mask.shape == shape
    assert found.labels is not None
    assert found.labels.max() == found.object_count


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_do_not_mix_frames(
    engine: str, make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """Frames segmented side by side have the masks they have one after another."""
    model = complete(make_model())
    frames = [np.ascontiguousarray(np.roll(frame, 13 * n, axis=n % 2)) for n in range(12)]
    with Segmenter(model, settings(engine=engine, threads=4)) as segmenter:
        alone = [segmenter.segment(pixels, 10) for pixels in frames]
        with ThreadPoolExecutor(segmenter.streams + 2) as pool:
            together = list(pool.map(lambda pixels: segmenter.segment(pixels, 10), frames))

    assert all(
        np.array_equal(a.mask, b.mask) and a.mean_entropy == b.mean_entropy
        for a, b in zip(alone, together, strict=True)
    )


@pytest.mark.parametrize("shapes", [[(64, 64), (96, 64), (64, 96), (128, 128), (200, 96)]])
def test_frames_of_many_shapes_share_an_engine(
    shapes: list[tuple[int, int]], make_model: MakeModel
) -> None:
    """Shapes may alternate between threads even where memory holds few of them at once."""
    model = complete(make_model())
    with Segmenter(model, settings()) as segmenter:
        fixed = 2.0 * (1 << 30) - segmenter._opened.memory_bytes
        need = segmenter._opened.bytes_per_px * 2.5 * 200 * 96
    with Segmenter(model, settings(memory_gib=(fixed + need) / (1 << 30))) as segmenter:

        def mask_of(index: int) -> Any:
            height, width = shapes[index % len(shapes)]
            return segmenter.segment(np.full((height, width), 300, np.uint16), 10).mask.shape

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(mask_of, range(25)))

    assert found == [shapes[index % len(shapes)] for index in range(25)]


def test_binary_summary_is_that_of_the_probabilities(
    make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """Mask, fractions, confidence and entropy follow from the probabilities and the threshold."""
    model = complete(make_model(normalisation=Percentile(1.0, 99.8)))
    with Segmenter(model, settings(threshold=0.3)) as segmenter:
        found = segmenter.segment(frame, 10, probabilities=True)
    p = whole_frame(model, frame)[0].astype(np.float64)
    sure = np.abs(p - 0.3) > 1e-4
    q = np.clip(p, 1e-12, 1 - 1e-12)
    entropy = -(q * np.log2(q) + (1 - q) * np.log2(1 - q))

    assert np.array_equal(found.mask[sure], (p > 0.3)[sure])
    assert found.foreground_fraction == found.mask.mean()
    assert found.mean_confidence == pytest.approx(np.where(p > 0.3, p, 1 - p).mean(), abs=1e-4)
    assert found.mean_entropy == pytest.approx(entropy.mean(), abs=1e-4)


def test_class_summary_is_that_of_the_probabilities(
    make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """The most probable class wins; confidence and entropy are those of the probabilities."""
    model = complete(make_model(net={"outputs": 4}, normalisation=ZScore()))
    with Segmenter(model, settings()) as segmenter:
        found = segmenter.segment(frame, 10, probabilities=True, labels=True)
    p = whole_frame(model, frame).astype(np.float64)
    ranked = np.sort(p, axis=0)
    sure = ranked[-1] - ranked[-2] > 1e-4

    assert np.array_equal(found.mask[sure], p.argmax(axis=0)[sure])
    assert found.mean_confidence == pytest.approx(p.max(axis=0).mean(), abs=1e-4)
    assert found.mean_entropy == pytest.approx(-(p * np.log2(p)).sum(axis=0).mean(), abs=1e-4)
    assert found.labels is not None
    assert found.labels.max() == found.object_count


@pytest.mark.parametrize("outputs", [1, 3])
def test_large_frames_count_a_quarter_of_the_rows_however_they_are_cut(
    outputs: int, make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """Above a megapixel certainty comes from every fourth row, the same rows in every layout."""
    model = complete(make_model(net={"outputs": outputs, "base": 2}))
    pixels = np.tile(frame, (5, 3))
    found = []
    for tile in ("auto", 333):
        with Segmenter(model, settings(tile_px=tile)) as segmenter:
            found.append(segmenter.segment(pixels, 10))
    p = whole_frame(model, pixels)[:, ::4].astype(np.float64)
    winner = p.max(axis=0) if outputs > 1 else np.maximum(p, 1 - p)

    assert [one.mean_confidence for one in found] == pytest.approx([winner.mean()] * 2, abs=1e-4)
    assert found[0].mean_entropy == pytest.approx(found[1].mean_entropy, abs=1e-6)


def test_colour_frames_become_grey_for_a_grey_network(
    make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """A network of one channel sees a colour frame's luminance, scaled from the luminance."""
    model = complete(make_model(normalisation=Percentile(1.0, 99.8)))
    colour = np.stack([frame, frame // 2, frame // 3], axis=-1)
    found = probabilities_of(model, colour)

    assert np.abs(found - whole_frame(model, colour)[0]).max() <= 1e-4


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32, np.float64])
def test_every_real_dtype_is_taken(
    dtype: Any, make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """Equal counts of another dtype give an equal mask, and the pixels are only read."""
    model = complete(make_model(normalisation=DatasetMax(maximum=255.0)))
    counts = np.minimum(frame, 127)
    other = counts.astype(dtype)
    other.flags.writeable = False
    with Segmenter(model, settings()) as segmenter:
        expected, found = segmenter.segment(counts, 10), segmenter.segment(other, 8)

    assert np.array_equal(expected.mask, found.mask)


def test_threshold_needs_a_single_class(make_model: MakeModel) -> None:
    """A threshold set for a model whose most probable class wins is refused."""
    model = complete(make_model(net={"outputs": 3}))

    with pytest.raises(UsageError, match="no threshold"):
        Segmenter(model, settings(threshold=0.4))


def test_wrong_output_in_the_manifest_is_named(
    make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """A manifest that promises other logits than the network gives is an engine error."""
    model = complete(make_model(net={"outputs": 2}, output="sigmoid", classes=["bead"]))

    with (
        Segmenter(model, settings()) as segmenter,
        pytest.raises(EngineError, match=r"logits of shape .* as its manifest says"),
    ):
        segmenter.segment(frame, 10)


def test_tile_smaller_than_its_halos_is_refused(
    make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """A forced tile that leaves nothing between its halos names the smallest that does."""
    model = complete(make_model(net={"depth": 3, "base": 2}))

    with Segmenter(model, settings(tile_px=64)) as segmenter:
        smallest = 2 * (model.manifest.halo_px or 0) + 8
        with pytest.raises(SettingsError, match=f"at least {smallest}"):
            segmenter.segment(frame, 10)


def test_too_little_memory_is_refused_with_what_is_needed(
    make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """A memory_gib that holds not even the smallest tile is an engine error with the remedy."""
    model = complete(make_model())

    with (
        Segmenter(model, settings(memory_gib=0.01)) as segmenter,
        pytest.raises(EngineError, match="raise memory_gib"),
    ):
        segmenter.segment(frame, 10)


@pytest.mark.parametrize("whole", ["instance", "gate"])
def test_networks_that_see_the_whole_frame_are_blended(
    whole: str, make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """Whole where it fits; else overlapping tiles whose weighted sum stays near the whole frame."""
    model = complete(make_model(net={"whole": whole}))
    pixels = np.tile(frame, (3, 2))
    exact = whole_frame(model, pixels)[0]
    fitting, blended = (
        probabilities_of(model, pixels, engine="onnxruntime", tile_px=tile)
        for tile in ("auto", 400)
    )

    assert model.manifest.exact_tiling is False
    assert np.abs(fitting - exact).max() <= 1e-4
    assert 0.0 < np.abs(blended - exact).mean() < 0.05


@pytest.mark.parametrize("length", [400, 401, 1000])
def test_blending_weights_add_up_to_one(length: int) -> None:
    """At every pixel of an axis the tiles' weights sum to one, and none is negative."""
    laid = axis(length, 4, 40, 120)
    total = np.zeros(laid.padded)
    for span, weights in zip(laid.spans(), axis_weights(laid), strict=True):
        assert (weights >= 0).all()
        total[span.start : span.stop] += weights

    assert np.allclose(total, 1.0, atol=1e-6)


def of_one_shape(model: Model, shape: tuple[int, int, int, int]) -> Segmenter:
    """Return a segmenter whose engine takes one input shape, as engines of a GPU do."""
    segmenter = Segmenter(model, settings(engine="onnxruntime"))
    segmenter._opened.engine.input_shape = shape
    return segmenter


@pytest.mark.parametrize("batch", [1, 3])
def test_an_engine_of_one_shape_gives_the_whole_frames_mask(
    batch: int, make_model: MakeModel, frame: NDArray[np.uint16]
) -> None:
    """Tiles of the engine's own size, by its own batch, give the mask of the whole frame."""
    model = complete(make_model())
    with Segmenter(model, settings(engine="onnxruntime")) as whole:
        wanted = whole.segment(frame, 10)
    with of_one_shape(model, (batch, 1, 128, 160)) as segmenter:
        found = segmenter.segment(frame, 10)
        layout = segmenter._layout((253, 381))

    assert layout.grid.tile_shape == (128, 160)
    assert (layout.batch, layout.streams) == (batch, 1)
    assert np.mean(found.mask != wanted.mask) < 1e-4


def test_a_frame_smaller_than_the_engines_input_is_mirrored_out(make_model: MakeModel) -> None:
    """It has its own shape and, away from the edges that were mirrored, the mask it always has."""
    model = complete(make_model())
    pixels = np.random.default_rng(4).integers(0, 1024, (60, 90)).astype(np.uint16)
    with Segmenter(model, settings(engine="onnxruntime")) as whole:
        wanted = whole.segment(pixels, 10)
    with capture_logs() as lines, of_one_shape(model, (1, 1, 128, 160)) as segmenter:
        found = segmenter.segment(pixels, 10)

    assert found.mask.shape == (60, 90)
    assert np.array_equal(found.mask[:36, :66], wanted.mask[:36, :66])
    assert any("--frame-shape 60x90" in line.get("remedy", "") for line in lines)


def test_an_engine_too_small_for_the_halo_is_refused(make_model: MakeModel) -> None:
    """Where nothing is left between two halos the error names the export that would do."""
    model = complete(make_model())
    pixels = np.zeros((200, 200), np.uint16)

    with (
        of_one_shape(model, (1, 1, 48, 48)) as segmenter,
        pytest.raises(EngineError, match="48 x 48") as caught,
    ):
        segmenter.segment(pixels, 10)
    assert "--frame-shape 200x200" in caught.value.remedy
