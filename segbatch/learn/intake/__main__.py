"""``python -m segbatch.learn.intake SOURCE FOLDER``: one network, in a process of its own.

Prints one JSON object on stdout: ``manifest``, ``kind`` and ``assumed``, or ``got``, ``wanted``
and ``remedy``. Exits with the error's code.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from segbatch import log
from segbatch.errors import ModelError, SegbatchError, StorageError, UsageError
from segbatch.infer.engine.manifest import (
    BitDepth,
    DatasetMax,
    Fixed,
    Normalisation,
    Percentile,
    ZScore,
    load_model,
)
from segbatch.learn.intake import load_network
from segbatch.learn.intake.facts import Wishes

CPU_S = 900
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
NORMALISATIONS = "zscore, bit_depth, percentile:LOW:HIGH, dataset_max:COUNTS, fixed:OFFSET:SCALE"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = _parser().parse_args(arguments)
    if given.ends_with_input:
        _end_with_input()
    log.configure()
    try:
        if given.memory_gib:
            _limit(given.memory_gib)
        wishes = Wishes(
            arch=given.arch,
            name=given.name,
            classes=given.classes,
            normalisation=_normalisation(given.normalisation),
            threshold=given.threshold,
            output=given.output,
            channel=given.channel,
        )
        manifest_file = load_network(given.source, given.folder, wishes=wishes)
        manifest = load_model(manifest_file).manifest
        source = manifest.source
        answer: dict[str, Any] = {
            "manifest": str(manifest_file),
            "kind": source.kind if source else "",
            "assumed": source.assumed if source else [],
        }
        code = 0
    except SegbatchError as error:
        answer, code = error.as_dict(), error.exit_code
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        full = StorageError(
            f"{given.folder} cannot be written: {error.strerror}",
            "a folder with room for the network",
            "make room there, or name another folder",
        )
        answer, code = full.as_dict(), full.exit_code
    except MemoryError:
        short = ModelError(
            f"{given.source}: more memory than {given.memory_gib or 'there is'} GiB is needed",
            "a network that fits",
            "take it in on a larger machine: python -m segbatch.learn.intake --memory-gib GIB",
        )
        answer, code = short.as_dict(), short.exit_code
    sys.stdout.write(json.dumps(answer) + "\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m segbatch.learn.intake",
        description="Write any U-Net as a model: NAME.onnx and its manifest NAME.json.",
    )
    parser.add_argument("source", type=Path, help="checkpoint, TorchScript, .pt2, ONNX, package")
    parser.add_argument("folder", type=Path, help="where the model is written")
    parser.add_argument("--arch", help="architecture of plain weights, such as smp-unet-resnet34")
    parser.add_argument("--name", help="the model's name  [that of the source]")
    parser.add_argument(
        "--class", dest="classes", action="append", help="a class; once each, without background"
    )
    parser.add_argument("--normalisation", help=f"{NORMALISATIONS}  [zscore]")
    parser.add_argument("--threshold", type=float, help="probability from which on  [0.5]")
    parser.add_argument("--output", help="which of several outputs holds the logits")
    parser.add_argument("--channel", type=int, help="which of several answers is the mask")
    parser.add_argument("--memory-gib", type=float, help="end rather than take more than this")
    parser.add_argument("--ends-with-input", action="store_true", help=argparse.SUPPRESS)
    return parser


def _normalisation(text: str | None) -> Normalisation | None:
    """Return what a flag says, None without one.

    Raises
    ------
    UsageError
        It says nothing that is known.
    """
    if text is None:
        return None
    kind, *numbers = text.split(":")
    kinds: dict[str, tuple[Any, tuple[str, ...]]] = {
        "zscore": (ZScore, ()),
        "bit_depth": (BitDepth, ()),
        "percentile": (Percentile, ("low_percent", "high_percent")),
        "dataset_max": (DatasetMax, ("maximum",)),
        "fixed": (Fixed, ("offset", "scale")),
    }
    try:
        made, names = kinds[kind]
        values = dict(zip(names, map(float, numbers), strict=True))
        return msgspec.convert({"type": kind, **values}, made)  # type: ignore[no-any-return]
    except (KeyError, ValueError, msgspec.ValidationError) as error:
        raise UsageError(f"--normalisation {text}", NORMALISATIONS, "correct the flag") from error


def _end_with_input() -> None:
    """End this process when its input does, as it does with the process that waits for it."""
    # Whoever else looks at the input finds none, and cannot wait for it.
    input_, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def wait() -> None:
        while os.read(input_, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="intake-input", daemon=True).start()


def _limit(memory_gib: float) -> None:
    """Let this process take no more memory, and write no file larger than a network may be."""
    try:
        import resource
    except ImportError:  # Windows has no such limits; the caller's time limit remains
        return
    size = int(memory_gib * (1 << 30))
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Who waits for this process ends it sooner, or takes it along.
    seconds = CPU_S * (os.cpu_count() or 1)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


if __name__ == "__main__":
    sys.exit(main())
