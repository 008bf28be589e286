"""What TensorRT says to this GPU, step by step, also where segbatch's own guard would refuse it.

Runs in a process of its own: full TensorRT ends the process where it has no driver, and what the
RTX flavour does on a GPU that it does not list is what is asked here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpu_engines
import gpu_speed
import msgspec
from gpu_run import Notes

from segbatch.infer.engine.tensorrt.driver import why_unusable
from segbatch.infer.engine.tensorrt.fits import refuse_header
from segbatch.infer.engine.tensorrt.flavour import Flavour, load
from segbatch.learn.export.frames import Picture
from segbatch.learn.export.gate import answer


def attempt(notes: Notes, work: Path, network: str, flavour: Flavour, *, tiny: bool) -> None:
    """Build, open and run an engine; note how far it came and in which words it was refused."""
    frame_px = tuple(msgspec.json.decode((work / "material.json").read_bytes())["frame_px"])
    notes.put(runs=False, doing="asking segbatch's guard")
    notes.put(guard=why_unusable(flavour) or "accepts this GPU")
    steps: list[str] = []

    def step(what: str, action: Any) -> Any:
        found = notes.attempt(what, action)
        if what not in notes.found.get("failed", {}):
            steps.append(what)
        notes.put(steps=steps)
        return found

    version = step("import", lambda: str(load(flavour).__version__))
    notes.put(version=version or "")
    built = step("build", lambda: gpu_engines.build_tensorrt(network, flavour, work, frame_px))
    if built is None:
        return
    notes.put(build_s=built.manifest.build_s, bytes=built.file.stat().st_size)
    content = built.file.read_bytes()
    step("check of the header", lambda: refuse_header(built, content) or True)
    opened = step("open", lambda: gpu_engines.open_tensorrt(built, tiny=tiny))
    if opened is None:
        return
    images, logits = gpu_engines.reference(work, network)
    manifest = gpu_engines.model_of(network, work).manifest
    contender = gpu_speed.Contender(
        flavour,
        "",
        1,
        opened.alone,
        opened.wait,
        lambda image: answer(opened, Picture.of(image), manifest),
    )
    found = step("run", lambda: gpu_speed.compare(contender, images, logits, manifest, frame_px))
    rate = step("time", lambda: gpu_speed.warmed(contender))
    notes.put(parity=found, rate=rate, runs=rate is not None)
    step("close", lambda: opened.close() or True)
