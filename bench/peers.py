"""What ``segbatch process`` is compared with: the bare engine, MONAI, and plain torch.

All of them get frames that are already in memory and normalised, write nothing
and throw their results away. Each is a callable ``peer(count)`` that runs
``count`` frames and returns the seconds they took.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from torch import nn

from segbatch.infer.engine.cpu.openvino_engine import HINTS, load_openvino

Frames = list[NDArray[np.float32]]
ROI_PX = 512
OVERLAP = 0.25


@dataclass(frozen=True)
class Peer:
    """Something that is timed; ``how`` says in which configuration."""

    how: str
    run: Callable[[int], float]


def compile_network(
    network: Path, precision: str, shape: tuple[int, ...], streams: int, threads: int, pinned: bool
) -> Any:
    """Compile ``network`` with OpenVINO for one input shape."""
    core = load_openvino().Core()
    graph = core.read_model(str(network))
    graph.reshape(list(shape))
    return core.compile_model(
        graph,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": pinned,
        },
    )


def bare_engine(
    network: Path, precision: str, frames: Frames, streams: int, threads: int, pinned: bool
) -> Peer:
    """Whole frames through the engine as fast as it takes them: the ceiling.

    Inputs are lent, not copied; every stream always has a request waiting.
    """
    openvino = load_openvino()
    compiled = compile_network(network, precision, frames[0].shape, streams, threads, pinned)
    waiting = openvino.AsyncInferQueue(compiled, 2 * streams)

    def run(count: int) -> float:
        start = time.perf_counter()
        for frame in itertools.islice(itertools.cycle(frames), count):
            waiting.start_async({0: frame}, share_inputs=True)
        waiting.wait_all()
        return time.perf_counter() - start

    return Peer(f"{streams} streams{', pinned' if pinned else ''}", run)


class _Tiles:
    """A predictor for MONAI that gives each call's tiles to the engine.

    Parameters
    ----------
    side_by_side
        Each tile goes to a stream of its own, instead of all in one request.
    """

    def __init__(
        self,
        network: Path,
        precision: str,
        channels: int,
        batch: int,
        threads: int,
        *,
        side_by_side: bool,
    ) -> None:
        self._tensor = load_openvino().Tensor
        together = 1 if side_by_side else batch
        self._together = together
        shape = (together, channels, ROI_PX, ROI_PX)
        streams = batch if side_by_side else 1
        compiled = compile_network(
            network, precision, shape, min(streams, threads), threads, pinned=False
        )
        self._requests = [compiled.create_infer_request() for _ in range(streams)]

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return logits that the caller may overwrite."""
        given = np.ascontiguousarray(tiles.numpy())
        missing = -len(given) % self._together  # the last call of a frame may be short
        if missing:
            given = np.concatenate([given, np.zeros((missing, *given.shape[1:]), given.dtype)])
        parts = [given[at : at + self._together] for at in range(0, len(given), self._together)]
        started = []
        for request, part in zip(self._requests, parts, strict=False):
            request.set_input_tensor(self._tensor(part, shared_memory=True))
            request.start_async()
            started.append(request)
        answers = []
        for request in started:
            request.wait()
            answers.append(torch.from_numpy(request.get_output_tensor(0).data.copy()))
        return torch.cat(answers)[: len(tiles)] if len(answers) > 1 else answers[0][: len(tiles)]


def monai_on_engine(
    network: Path, precision: str, frames: Frames, batch: int, threads: int, *, side_by_side: bool
) -> Peer:
    """MONAI's sliding window over the engine."""
    predictor = _Tiles(
        network, precision, frames[0].shape[1], batch, threads, side_by_side=side_by_side
    )
    how = f"sw_batch {batch}" + (", each tile in a stream" if side_by_side else "")
    return Peer(how, _sliding(frames, batch, predictor))


def monai_on_torch(net: nn.Module, frames: Frames, batch: int) -> Peer:
    """MONAI's sliding window over torch: eager, fp32, torch's own number of threads."""
    return Peer(f"sw_batch {batch}", _sliding(frames, batch, net))


def plain_torch(net: nn.Module, frames: Frames) -> Peer:
    """Whole frames through torch one after another: eager, fp32, torch's own threads."""
    return Peer("whole frames", _timed(frames, net))


def _sliding(
    frames: Frames, batch: int, predictor: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[int], float]:
    def frame(image: torch.Tensor) -> object:
        return sliding_window_inference(
            image, (ROI_PX, ROI_PX), batch, predictor, overlap=OVERLAP, mode="gaussian"
        )

    return _timed(frames, frame)


def _timed(frames: Frames, work: Callable[[torch.Tensor], object]) -> Callable[[int], float]:
    images = [torch.from_numpy(frame) for frame in frames]

    def run(count: int) -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            for image in itertools.islice(itertools.cycle(images), count):
                work(image)
            return time.perf_counter() - start

    return run


def best_of(peers: Iterable[Peer], count: int, trials: int) -> Peer:
    """Run ``count`` frames through each peer in turn, several times; return the fastest.

    A peer counts with its best trial, so that what else the machine did matters little.
    """
    tried = list(peers)
    for peer in tried:
        peer.run(1)  # to warm up
    seconds = [min(times) for times in zip(*_trials(tried, count, trials), strict=True)]
    return tried[seconds.index(min(seconds))]


def _trials(tried: list[Peer], count: int, trials: int) -> list[list[float]]:
    return [[peer.run(count) for peer in tried] for _ in range(trials)]
