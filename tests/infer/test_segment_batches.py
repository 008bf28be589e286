"""Engines of one shape and batch, as TensorRT's are: ONNX Runtime on a network of that shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from segbatch.errors import EngineError
from segbatch.infer.engine.made.artifact import Shape
from segbatch.infer.engine.manifest import Model
from segbatch.infer.segment import Segmenter
from tests.infer.conftest import MakeModel
from tests.infer.fixed import fixed_engine
from tests.infer.test_segment import complete, settings, whole_frame


def of_fixed_shape(model: Model, shape: Shape, threshold: float) -> Segmenter:
    """Return a segmenter whose engine takes one input shape and refuses every other."""
    segmenter = Segmenter(model, settings(engine="onnxruntime", threshold=threshold))
    segmenter._opened = replace(segmenter._opened, engine=fixed_engine(model, shape))
    return segmenter


def test_another_batch_is_refused(make_model: MakeModel) -> None:
    """The engine of these tests takes its own shape only, as one of TensorRT does."""
    engine = fixed_engine(complete(make_model()), (4, 1, 32, 32))

    assert engine.run(np.zeros((4, 1, 32, 32), np.float32)).shape[0] == 4
    with pytest.raises(EngineError, match="dimension"):
        engine.run(np.zeros((3, 1, 32, 32), np.float32))


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize(
    ("shape", "tiles"),
    [
        ((1, 1, 256, 384), 1),
        ((4, 1, 256, 384), 1),
        ((4, 1, 128, 160), 9),
        ((5, 1, 128, 160), 9),
        ((20, 1, 128, 160), 9),
        ((2, 1, 128, 384), 3),
    ],
)
def test_the_last_batch_is_padded(
    shape: Shape,
    tiles: int,
    probabilities: bool,
    make_model: MakeModel,
    frame: NDArray[np.uint16],
) -> None:
    """An engine of any batch gives the whole frame's mask, however many tiles the last one has."""
    model = complete(make_model())
    probability = whole_frame(model, frame)[0]
    threshold = float(np.median(probability))  # so that half of the pixels are foreground
    with of_fixed_shape(model, shape, threshold) as segmenter:
        found = segmenter.segment(frame, 10, probabilities=probabilities)
        again = segmenter.segment(frame[::-1], 10)
        layout = segmenter._layout((253, 381))

    assert (layout.grid.count, layout.batch) == (tiles, shape[0])
    assert np.mean(found.mask != (probability > threshold)) < 1e-3
    assert not np.array_equal(again.mask, found.mask)
    if probabilities:
        assert found.probabilities is not None
        assert np.abs(found.probabilities - probability).max() < 1e-4
