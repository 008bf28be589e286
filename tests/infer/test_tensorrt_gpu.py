"""On a GPU, engines give the masks that the processor gives, in whatever order they are asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from segbatch.infer.engine.kept import kept_file
from segbatch.infer.engine.tensorrt import TensorRtEngine, why_unusable
from segbatch.infer.engine.tensorrt.device import CudaDevice, DeviceMemoryError
from tests.infer.rtx import SHAPE, SOURCE, needs_rtx, small_engine

pytestmark = pytest.mark.gpu


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[TensorRtEngine]:
    """Return an engine of a small network, open; ``net.onnx`` beside it is the network."""
    if why := why_unusable("tensorrt_rtx"):
        pytest.skip(why)
    opened = TensorRtEngine(small_engine(tmp_path), SOURCE.sha256)
    yield opened
    opened.close()


def reference(folder: Path, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits that ONNX Runtime gives."""
    session = onnxruntime.InferenceSession(str(folder / "net.onnx"))
    [logits] = session.run(None, {"image": batch})
    return np.asarray(logits)


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    """Return the first GPU."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    opened = CudaDevice()
    yield opened
    opened.close()


def test_memory_goes_there_and_back(device: CudaDevice) -> None:
    """What is copied to the GPU comes back the same, in the order of the streams' events."""
    there, back = device.pinned(1 << 20), device.pinned(1 << 20)
    there[...] = np.random.default_rng(0).integers(0, 256, there.size)
    address, event = device.allocate(there.nbytes), device.event()
    up, down = device.stream(), device.stream()

    device.upload(address, there, up)
    device.record(event, up)
    device.wait(down, event)
    device.download(back, address, down)
    device.record(event, down)
    device.finish(event)

    np.testing.assert_array_equal(back, there)


def test_no_room_is_said(device: CudaDevice) -> None:
    """More memory than any GPU has is refused as such, and the device goes on."""
    with pytest.raises(DeviceMemoryError):
        device.allocate(1 << 50)

    assert device.allocate(256)


@needs_rtx
def test_logits_are_those_of_the_processor(engine: TensorRtEngine, tmp_path: Path) -> None:
    """Logits in fp32 are those of ONNX Runtime up to the order of additions."""
    batch = np.random.default_rng(1).random(SHAPE, np.float32)

    with engine.request(SHAPE, 1) as request:
        request.input[...] = batch
        np.testing.assert_allclose(request.infer(), reference(tmp_path, batch), atol=1e-3)


@needs_rtx
def test_many_threads_get_their_own(engine: TensorRtEngine, tmp_path: Path) -> None:
    """However many threads ask at once, each gets the logits of its own frame."""
    batches = np.random.default_rng(2).random((40, *SHAPE), np.float32)

    def ask(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with engine.request(SHAPE, 1) as request:
            request.input[...] = batch
            return request.infer().copy()

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(ask, batches))

    for batch, logits in zip(batches, found, strict=True):
        np.testing.assert_allclose(logits, reference(tmp_path, batch), atol=1e-3)


@needs_rtx
def test_what_was_compiled_is_kept(engine: TensorRtEngine) -> None:
    """Opening an engine leaves its compiled kernels in the user's cache, for this user alone."""
    folder = kept_file("tensorrt", "runtime", engine.version).parent

    kept = [file for file in folder.iterdir() if file.name.startswith("runtime-")]

    assert kept
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o700
