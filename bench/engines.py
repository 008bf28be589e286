"""Our networks on every engine of a processor, and on MONAI's and nnU-Net's tilings of one.

    python bench/engines.py [--network shipped|large] [--rounds 5] [--seconds 3]

Frames of 1440 x 1080 px are in memory and normalised; one goes after the other, with all threads,
and results are thrown away. All contenders take turns, and each row is the median of its rounds:
milliseconds a frame, and the time of ONNX Runtime in fp32 over it. "mask" is how many pixels have
the same class as with ONNX Runtime in fp32, so that nobody is fast by being wrong. nnU-Net's
windows (step 0.5, Gaussian of an eighth of the window) are those of MONAI at an overlap of 0.5.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import frames
import machine
import numpy as np
from numpy.typing import NDArray

from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.cpu.openvino_engine import OpenVinoEngine
from segbatch.infer.engine.machine import available_threads

if TYPE_CHECKING:
    import networks

Image = NDArray[np.float32]
Run = Callable[[Image], Image]  # (1, 1, Y, X) to logits (1, 1, Y, X)
FRAMES, CALIBRATING = 4, 4
BASE = "ONNX Runtime fp32"


@contextmanager
def engine(opened: Any) -> Iterator[Run]:
    """Lend what runs whole frames on one of our engines."""

    def run(image: Image) -> Image:
        with opened.request(image.shape, 1) as request:
            request.input[...] = image
            return request.infer()

    try:
        yield run
    finally:
        opened.close()


def on_torch(net: Any, how: str) -> Run:
    """Return what runs whole frames through torch: ``eager``, ``compile``, or ``bf16``."""
    import torch

    if how == "compile":
        net = torch.compile(net)
    if how == "bf16":
        net = net.to(memory_format=torch.channels_last)

    def run(image: Image) -> Image:
        given = torch.from_numpy(image)
        with torch.inference_mode():
            if how != "bf16":
                return net(given).numpy()
            with torch.autocast("cpu", torch.bfloat16):
                return net(given.to(memory_format=torch.channels_last)).float().numpy()

    return run


def windows(run: Run, overlap: float) -> Run:
    """Return what runs a frame in MONAI's Gaussian windows of 512 px over an engine."""
    import torch
    from monai.inferers.utils import sliding_window_inference

    def tiles(given: torch.Tensor) -> torch.Tensor:
        # A copy: MONAI scales what it is given in place.
        return torch.from_numpy(np.array(run(given.numpy())))

    def whole(image: Image) -> Image:
        with torch.inference_mode():
            made = sliding_window_inference(
                torch.from_numpy(image), (512, 512), 1, tiles, overlap=overlap, mode="gaussian"
            )
            return made.numpy()  # type: ignore[union-attr]

    return whole


def contenders(network: networks.Network, calibrating: list[Image], folder: Path) -> dict[str, Any]:
    """Return how each contender is opened."""
    from segbatch.learn.export.precision import to_int8

    file, threads = network.model.file, available_threads()
    int8 = folder / "int8.onnx"
    int8.write_bytes(to_int8(file.read_bytes(), calibrating))
    bf16 = "BF16" in OpenVinoEngine(file, "fp32", threads).capabilities()
    fast = "bf16" if bf16 else "fp32"

    @contextmanager
    def torch_way(how: str) -> Iterator[Run]:
        yield on_torch(network.torch, how)

    @contextmanager
    def in_windows(overlap: float) -> Iterator[Run]:
        with engine(OpenVinoEngine(file, fast, threads)) as run:
            yield windows(run, overlap)

    found = {
        "torch eager fp32": lambda: torch_way("eager"),
        "torch.compile fp32": lambda: torch_way("compile"),
        "torch autocast bf16, channels last": lambda: torch_way("bf16"),
        BASE: lambda: engine(OnnxRuntimeEngine(file, threads)),
        "ONNX Runtime int8": lambda: engine(OnnxRuntimeEngine(int8, threads, "int8")),
        "OpenVINO fp32": lambda: engine(OpenVinoEngine(file, "fp32", threads)),
        "OpenVINO bf16": lambda: engine(OpenVinoEngine(file, "bf16", threads)),
        "OpenVINO int8": lambda: engine(OpenVinoEngine(int8, "int8", threads)),
        f"MONAI, overlap 0.25, on OpenVINO {fast}": lambda: in_windows(0.25),
        f"nnU-Net's windows, on OpenVINO {fast}": lambda: in_windows(0.5),
    }
    if not bf16:
        del found["torch autocast bf16, channels last"], found["OpenVINO bf16"]
    return found


def compare(network: networks.Network, raws: list[Path], rounds: int, seconds: float) -> None:
    """Measure one network and print its table."""
    manifest = network.model.manifest
    padded = frames.in_memory(raws, manifest, padded=True)
    images, calibrating = padded[:FRAMES], padded[FRAMES:]
    with tempfile.TemporaryDirectory(prefix="segbatch-bench-") as name:
        ways = contenders(network, calibrating, Path(name))
        runs: dict[str, Run] = {}
        stack = []
        for label, way in ways.items():
            opened = way()
            try:
                runs[label] = opened.__enter__()
                for image in images[:2]:  # compiled, and warm
                    runs[label](image)
                stack.append(opened)
            except Exception as error:  # noqa: BLE001 - one that cannot run is a row too
                print(f"{label} does not run here: {str(error).splitlines()[0][:160]}")
                runs.pop(label, None)
        times = measure(runs, images, rounds, seconds)
        alike = agreement(runs, images)
        if network.label.startswith("shipped"):  # torch runs the architecture with other weights
            alike |= {label: "other weights" for label in runs if label.startswith("torch")}
        for opened in reversed(stack):
            opened.__exit__(None, None, None)
    print(f"\n## {network.label}: {network.parameters / 1e6:.2f} M parameters\n")
    print(f"| | ms a frame | of each round | {BASE} over it | mask |\n|---|---|---|---|---|")
    for label, each in times.items():
        ratio = statistics.median(b / t for b, t in zip(times[BASE], each, strict=True))
        shown = " ".join(f"{ms:.0f}" for ms in each)
        print(
            f"| {label} | {statistics.median(each):.0f} | {shown} | {ratio:.2f} | {alike[label]} |"
        )


def measure(
    runs: dict[str, Run], images: list[Image], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Return the milliseconds a frame of each contender in each round."""
    times: dict[str, list[float]] = {label: [] for label in runs}
    order = list(runs)
    for number in range(rounds):
        for label in order[number % len(order) :] + order[: number % len(order)]:
            began, done = time.perf_counter(), 0
            for image in itertools.cycle(images):
                runs[label](image)
                done += 1
                if time.perf_counter() - began >= seconds:
                    break
            times[label].append(1000 * (time.perf_counter() - began) / done)
    return times


def agreement(runs: dict[str, Run], images: list[Image]) -> dict[str, str]:
    """Return how many pixels of each contender's masks are those of ONNX Runtime in fp32."""
    wanted = [runs[BASE](image) > 0 for image in images]
    found = {}
    for label, run in runs.items():
        same = [
            np.mean((run(image) > 0) == mask) for image, mask in zip(images, wanted, strict=True)
        ]
        found[label] = f"{100 * float(np.mean(same)):.3f} %"
    return found


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("shipped", "large"), action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each, in each round")
    given = parser.parse_args()
    import networks  # after --help is answered

    for line in machine.describe():
        print(line, flush=True)
    with tempfile.TemporaryDirectory(prefix="segbatch-bench-") as name:
        folder = Path(name)
        raws = frames.write_good_run(folder / "raws", FRAMES + CALIBRATING, seed=1)
        for which in given.network or ["shipped", "large"]:
            place = folder / which
            place.mkdir()
            network = networks.shipped() if which == "shipped" else networks.large(place)
            compare(network, raws, given.rounds, given.seconds)


if __name__ == "__main__":
    main()
