"""``segbatch doctor``: what is installed, what the engines and folders answer."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import click
import msgspec

from segbatch import __version__
from segbatch.errors import SegbatchError
from segbatch.infer.engine.network.models import open_model
from segbatch.infer.engine.tensorrt.driver import ask
from segbatch.infer.engine.tensorrt.flavour import installed
from segbatch.infer.segment import Segmenter
from segbatch.settings import Settings

Standing = Literal["ok", "note", "fault"]
_NEEDED = ("numpy", "tifffile", "imagecodecs", "opencv-python-headless", "onnxruntime", "openvino")
_EXTRAS = {
    "torch": "learn",
    "pycromanager": "camera",
    "tensorrt-rtx-cu12": "gpu",
    "distributed": "cluster",
}
LOW_DISK_GIB = 5.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at: ``fault`` means that `process` cannot work."""

    what: str
    standing: Standing
    found: str
    remedy: str = ""


def doctor_command(paths: Sequence[str], *, as_json: bool) -> int:
    """Print the findings; return 1 where something that `process` needs is missing."""
    findings = [*machine(), *packages(), *engines(), *gpus(), *folders(paths)]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2))
    else:
        colours = {"ok": "green", "note": "yellow", "fault": "red"}
        for finding in findings:
            mark = click.style(f"{finding.standing:8}", fg=colours[finding.standing])
            click.echo(f"{mark}{finding.what}: {finding.found}")
            if finding.remedy:
                click.echo(f"{'':8}remedy: {finding.remedy}")
    return 1 if any(finding.standing == "fault" for finding in findings) else 0


def machine() -> Iterator[Finding]:
    """Look at the program, the interpreter and the processor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(what="segbatch", standing="ok", found=__version__)
    yield Finding(
        what="machine",
        standing="ok",
        found=f"Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}, {cores} cores",
    )


def packages() -> Iterator[Finding]:
    """Look at the packages that `process` needs, and at those of the extras."""
    for name in _NEEDED:
        version = _version(name)
        yield Finding(
            what=name,
            standing="ok" if version else "fault",
            found=version or "not installed",
            remedy="" if version else "install segbatch again: pip install segbatch",
        )
    for name, extra in _EXTRAS.items():
        version = _version(name)
        yield Finding(
            what=name,
            standing="ok" if version else "note",
            found=version or f"not installed (only the {extra} extra needs it)",
            remedy="" if version else f"if you want it: pip install 'segbatch[{extra}]'",
        )


def engines() -> Iterator[Finding]:
    """Open the shipped network on every engine of this machine."""
    model = open_model("")
    for engine in ("openvino", "onnxruntime"):
        try:
            with Segmenter(model, msgspec.convert({"engine": engine}, Settings)) as segmenter:
                info = segmenter.info
                found = f"runs {info.name} at {info.precision}"
            yield Finding(what=f"engine {engine}", standing="ok", found=found)
        except SegbatchError as error:
            reference = engine == "onnxruntime"
            yield Finding(
                what=f"engine {engine}",
                standing="fault" if reference else "note",
                found=error.got,
                remedy=error.remedy or "--engine auto uses another engine",
            )


def gpus() -> Iterator[Finding]:
    """Ask each TensorRT that is installed, and the driver, in a process of its own."""
    for flavour in installed():
        answer = ask(flavour)
        why, _, remedy = answer.why.partition("; remedy: ")
        gpu = answer.gpu
        found = f"{gpu.name}, driver {gpu.driver or '?'}, CUDA {gpu.cuda}" if gpu else "no GPU"
        yield Finding(
            what=f"engine {flavour}",
            standing="note" if why else "ok",
            found=why or found,
            remedy=remedy,
        )


def folders(paths: Sequence[str]) -> Iterator[Finding]:
    """Look whether results can be written into ``paths`` and how much room there is."""
    for text in paths:
        path = Path(text)
        if not path.is_dir():
            found = "a file, not a folder" if path.exists() else "no such folder"
            yield Finding(what=text, standing="fault", found=found, remedy="check the path")
            continue
        free_gib = shutil.disk_usage(path).free / 2**30
        try:
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            yield Finding(
                what=text,
                standing="fault",
                found=f"cannot be written: {error.strerror}",
                remedy="write elsewhere with --out DIR, or give this user the permission",
            )
            continue
        low = free_gib < LOW_DISK_GIB
        yield Finding(
            what=text,
            standing="note" if low else "ok",
            found=f"can be written, {free_gib:.1f} GiB free",
            remedy="free some room" if low else "",
        )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
