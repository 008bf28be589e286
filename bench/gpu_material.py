"""What ``gpu.py`` measures on: frames, two networks, and their answers in fp32 on a processor."""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from frames import BIT_DEPTH, subset
from gpu_flops import operations
from gpu_run import NETWORKS, Notes
from numpy.typing import NDArray

from segbatch.acquire.simulate import write_run
from segbatch.acquire.simulate.run import RUN_FILE
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.machine import available_threads
from segbatch.infer.engine.manifest import Manifest, Model, ZScore, write_manifest
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.normalise import fill, scale_of
from segbatch.infer.tiles import Span, up

SEED = 1
FRAME_PX = (1080, 1440)
TINY_PX = (96, 128)
# As bench/engine.py and `measure_tiling` find it; whole frames are one tile, and need none.
LARGE_STRIDE, LARGE_HALO_PX = 16, 96
REAL, NOISE = 4, 1


@dataclass(frozen=True)
class Size:
    """How large it all is; ``different`` frames are repeated, one pixel apart."""

    frame_px: tuple[int, int]
    different: int
    frames: int

    @classmethod
    def of(cls, *, tiny: bool) -> Size:
        """Return the size of a measurement, or that of a dry run."""
        return cls(TINY_PX, 6, 8) if tiny else cls(FRAME_PX, 48, 1200)


def prepare(notes: Notes, work: Path, *, tiny: bool) -> None:
    """Write frames, networks and references into ``work``; note what a frame costs."""
    size = Size.of(tiny=tiny)
    if notes.attempt("simulating frames", lambda: simulate(work / "album", size)) is None:
        raise SystemExit("nothing can be measured without frames")
    notes.put(frame_px=size.frame_px, different_frames=size.different)
    notes.attempt("copying frames", lambda: write_copies(work, size.frames))
    for name in NETWORKS:
        notes.attempt(f"network {name}", lambda name=name: make_network(name, work, tiny=tiny))
        costs = notes.attempt(f"reference of {name}", lambda name=name: refer(name, work, size))
        notes.put(networks={**notes.found.get("networks", {}), name: costs})


def simulate(folder: Path, size: Size) -> list[Path]:
    """Simulate a run, and keep the raw files and true masks of its good frames alone."""
    y, x = size.frame_px
    write_run(
        folder, 2 * size.different, SEED, height_px=y, width_px=x, threads=available_threads()
    )
    listed = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["frames"]
    good = [folder / each["file"] for each in listed if each["kind"] == "good"][: size.different]
    for file in folder.iterdir():
        if file not in good and file.with_name(file.name.replace("_truth", "")) not in good:
            file.unlink()
    return good


def album(work: Path) -> list[Path]:
    """Return the raw files that are different."""
    return sorted(f for f in (work / "album").glob("*.tif") if not f.stem.endswith("_truth"))


def write_copies(work: Path, count: int) -> None:
    """Write a run of ``count`` frames: the different ones, and copies of them.

    In each copy one pixel is another, since a frame that was there before is rejected.
    """
    folder = work / "copies"
    folder.mkdir()
    raws = album(work)
    pixels = [tifffile.imread(raw) for raw in raws]

    def write(at: int) -> None:
        turn, which = divmod(at, len(raws))
        frame = pixels[which].copy()
        frame[1, 1 + turn] ^= 1
        tifffile.imwrite(folder / f"img_{at:05d}.tif", frame)

    with ThreadPoolExecutor(available_threads()) as pool:
        for _ in pool.map(write, range(count)):
            pass


def run_folder(work: Path, count: int) -> Path:
    """Return a run of the first ``count`` frames."""
    folder = work / f"run-{count}"
    if folder.is_dir():
        return folder
    return subset(sorted((work / "copies").iterdir()), count, folder)


def make_network(name: str, work: Path, *, tiny: bool) -> Path:
    """Write the large U-Net and its manifest; the shipped network is there already."""
    file = work / f"{name}.json"
    if name == "shipped":
        shipped = open_model("")
        shutil.copy(shipped.file, work / shipped.file.name)
        write_manifest(shipped.manifest, file)
        return file
    import networks

    from segbatch.learn.export.network import to_onnx
    from segbatch.learn.nets import Architecture, build

    # A dry run takes one that a processor answers at once.
    small = Architecture(base=4, depth=4)
    net = build(small, SEED) if tiny else networks.fitted(work / "material", ZScore())[0]
    content = to_onnx(net)
    file.with_suffix(".onnx").write_bytes(content)
    manifest = Manifest(
        name=name,
        file=f"{name}.onnx",
        sha256=hashlib.sha256(content).hexdigest(),
        classes=["bead"],
        normalisation=ZScore(),
        stride=LARGE_STRIDE,
        halo_px=LARGE_HALO_PX,
        exact_tiling=True,
        training={"architecture": vars_of(net.architecture)},
    )
    write_manifest(manifest, file)
    return file


def vars_of(architecture: Any) -> dict[str, Any]:
    """Return an architecture as a manifest holds it."""
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(architecture)
    return found


def model_of(name: str, work: Path) -> Model:
    """Return a network with its manifest."""
    return open_model(work / f"{name}.json")


def shape_of(manifest: Manifest, frame_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the input of a whole frame."""
    stride = manifest.stride or 1
    return (1, manifest.input_channels, up(frame_px[0], stride), up(frame_px[1], stride))


def input_of(raw: Path, manifest: Manifest) -> NDArray[np.float32]:
    """Return a frame as the network's input (1, 1, Y, X), mirrored out to its stride."""
    pixels = tifffile.imread(raw)
    shape = shape_of(manifest, pixels.shape)
    y, x = (Span(0, side, 0, length) for side, length in zip(shape[2:], pixels.shape, strict=True))
    made = np.empty(shape, np.float32)
    fill(pixels, y, x, *scale_of(pixels, manifest.normalisation, BIT_DEPTH), made[0])
    return made


def refer(name: str, work: Path, size: Size) -> dict[str, Any]:
    """Write inputs and the logits of ONNX Runtime in fp32 on the processor; return the costs."""
    model = model_of(name, work)
    inputs = [input_of(raw, model.manifest) for raw in album(work)[:REAL]]
    shape = shape_of(model.manifest, size.frame_px)
    rng = np.random.default_rng(SEED)
    inputs += [rng.standard_normal(shape, np.float32) for _ in range(NOISE)]
    engine = OnnxRuntimeEngine(model.file, available_threads())
    try:
        logits = [engine.run(image) for image in inputs]
    finally:
        engine.close()
    np.savez(work / f"{name}.npz", inputs=np.concatenate(inputs), logits=np.concatenate(logits))
    flops = operations(model.file.read_bytes(), shape)
    return {
        "input": shape,
        "gflop": flops / 1e9,
        "parameters": parameters(model.file),
        "sha256": model.manifest.sha256,
    }


def parameters(network: Path) -> int:
    """Return how many weights and biases a network has, batch norm folded away."""
    import onnx

    return sum(int(np.prod(each.dims)) for each in onnx.load(network).graph.initializer)
