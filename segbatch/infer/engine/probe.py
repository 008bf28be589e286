"""A first run of an engine in a process of its own.

Some engines end the process on some processors instead of raising an error, so
each is tried on the very network before it is loaded here. The same trial finds
what the engine needs per pixel, from the growth of the trial process's peak
memory between a small and a large input, what loading took left aside. Kept per
version of segbatch and of the engine, processor, network and precision.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from segbatch import __version__
from segbatch.errors import EngineError
from segbatch.heap import give_back
from segbatch.infer.engine.answers import ask_apart, last_answer
from segbatch.infer.engine.cache import keep, recall
from segbatch.infer.engine.machine import processor
from segbatch.log import get_logger

TIMEOUT_S = 180.0
SMALL_PX, LARGE_PX = 256, 1024
# Assumed where a platform does not tell a process its peak memory: more than
# any network of the usual U-Net sizes was measured to need.
ASSUMED_BYTES_PER_PX = 1500.0
# Where 5 is written, the most memory that this process held becomes what it holds now (proc(5)).
CLEAR_REFS = Path("/proc/self/clear_refs")
UNFIT = "this processor does not compute in"
# OpenVINO's names of the number formats that not every processor computes in.
FORMATS = {"bf16": "BF16", "fp16": "FP16", "int8": "INT8"}


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a trial run showed.

    ``bytes_per_px`` is per stream and input pixel, ``fixed_bytes`` the rest
    (libraries, weights); ``reason`` says why it is not ``usable``; ``formats`` are the
    number formats in which OpenVINO computes on this processor, by its names.
    """

    usable: bool
    reason: str = ""
    formats: list[str] = []
    fixed_bytes: float = 0.0
    bytes_per_px: Annotated[float, Meta(gt=0)] = ASSUMED_BYTES_PER_PX

    @property
    def unfit(self) -> bool:
        """Whether the processor itself is the reason, which will be there tomorrow."""
        return self.reason.startswith(UNFIT)

    def computes_in(self, precision: str) -> bool:
        """Tell whether the processor itself computes in a precision."""
        return precision not in FORMATS or FORMATS[precision] in self.formats


def probe(
    network: Path, sha256: str, engine: str, precision: str, channels: int, stride: int
) -> Probe:
    """Try an engine on a network, or return what an earlier trial showed.

    Only what lasts is kept: that it runs, or that the processor does not compute so. Another
    failure may be a passing one, such as a lack of memory.
    """
    name = _name(sha256, engine, precision)
    known = recall(name, Probe)
    if known is not None and (known.usable or known.unfit):
        return known
    arguments = [str(network), sha256, engine, precision, str(channels), str(stride)]
    try:
        done = ask_apart("segbatch.infer.engine.probe", arguments, TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Probe(usable=False, reason=f"no answer within {TIMEOUT_S:.0f} s")
    except OSError as error:
        return Probe(usable=False, reason=f"the trial process cannot be started: {error}")
    answer = last_answer(done.stdout, Probe)
    if done.returncode == 0 and answer is not None:
        found = answer
    elif done.returncode < 0:
        found = Probe(usable=False, reason=f"the trial process died of signal {-done.returncode}")
    else:
        said = done.stderr.strip().splitlines()
        found = Probe(usable=False, reason=said[-1] if said else f"exit code {done.returncode}")
    get_logger(__name__).debug("engine tried", engine=engine, precision=precision, found=found)
    if found.usable or found.unfit:
        keep(name, found)
    return found


def _name(sha256: str, engine: str, precision: str) -> str:
    key = [__version__, version(engine), platform.platform(), processor(), sha256, precision]
    key += Probe.__struct_fields__
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    return f"probe-{engine}-{digest}.json"


def _forget_peak() -> bool:
    """Let the most that this process held be what it holds now; False where that is not allowed."""
    give_back()  # else a run would fill what loading left behind, and nothing would grow
    try:
        CLEAR_REFS.write_bytes(b"5")
    except OSError:
        return False
    return True


def _peak_bytes() -> int | None:
    """Return the most memory this process held since ``_forget_peak``, None where nobody says."""
    try:
        # getrusage would count what the parent held when it forked.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _try(
    network: Path, sha256: str, engine: str, precision: str, channels: int, stride: int
) -> Probe:
    formats: list[str] = []
    runner: Any
    if engine == "openvino":
        from segbatch.infer.engine.cpu.openvino_engine import OpenVinoEngine

        runner = OpenVinoEngine(network, precision, threads=1, sha256=sha256)
        formats = runner.capabilities()
        if not Probe(usable=True, formats=formats).computes_in(precision):
            return Probe(usable=False, reason=f"{UNFIT} {precision}")
    else:
        from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine

        runner = OnnxRuntimeEngine(network, 1, precision, sha256=sha256)
    peaks, least, forgotten = [], 0.0, True
    sides = [max(1, round(px / stride)) * stride for px in (SMALL_PX, LARGE_PX)]
    for side in sides:
        with runner.request((1, channels, side, side), 1) as request:
            # A graph is compiled by now; that may take more than the run.
            forgotten &= _forget_peak()
            request.input[...] = 0.5
            logits = request.infer()
            peaks.append(_peak_bytes())
            least = (request.input.nbytes + logits.nbytes) / side**2
            if not np.isfinite(logits).all():
                return Probe(usable=False, reason="the network's answer is not finite")
    small, large = peaks
    if small is None or large is None:
        return Probe(usable=True, formats=formats)
    fixed, slope = _need((small, large), (sides[0] ** 2, sides[1] ** 2), least, forgotten=forgotten)
    return Probe(usable=True, formats=formats, fixed_bytes=fixed, bytes_per_px=slope)


def _need(
    peaks: tuple[int, int], areas: tuple[int, int], least: float, *, forgotten: bool
) -> tuple[float, float]:
    """Return fixed bytes and bytes per pixel, ``least`` and more, of peaks at two areas."""
    (small, large), (small_px, large_px) = peaks, areas
    # What may have been held while loading, and not in the run, is laid to the pixels.
    slope = (large - small) / (large_px - small_px) if forgotten else large / large_px
    slope = max(slope, least)
    return max(0.0, small - slope * small_px), slope


if __name__ == "__main__":
    file, digest, name, number_format, input_channels, step = sys.argv[1:]
    try:
        answer = _try(Path(file), digest, name, number_format, int(input_channels), int(step))
    except EngineError as error:
        answer = Probe(usable=False, reason=error.got)
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(answer) + b"\n")
