"""Read every file of a TIFF corpus and compare with tifffile and Pillow.

    python bench/corpus.py FOLDER [--memory-gib 2] [--seconds 20] [--list]

Each file is read in a process of its own with a limit on memory and time, as
malformed files are part of a corpus. The table says how each ended; where
tifffile and Pillow agree on the pixels of the first page, ours are compared
with theirs.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import resource
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from segbatch.acquire.source import open_source
from segbatch.errors import FrameError, UnsupportedFrameError

MAX_FRAME_GIB = 1.0
KEPT = 8  # frames of one file that are read


@dataclass
class Result:
    """How one file ended; ``memory_mib`` is what reading it added to the process."""

    file: str
    outcome: str
    seconds: float
    memory_mib: float
    said: str = ""
    verdict: str = ""


def ours(path: Path) -> tuple[str, str, NDArray[Any] | None]:
    """Return (outcome, message, first frame) of segbatch's reader."""
    outcomes: list[str] = []
    first = None
    said = ""
    try:
        with open_source(path, bit_depth=16, profile="zelux", max_file_gib=MAX_FRAME_GIB) as source:
            for page in range(min(source.frame_count, KEPT)):
                try:
                    frame = source.read(page)
                except FrameError as error:
                    outcomes.append(_name(error))
                    said = said or str(error)
                else:
                    outcomes.append("read")
                    first = frame.pixels if page == 0 else first
    except FrameError as error:
        return _name(error), str(error), None
    kinds = sorted(set(outcomes))
    return (kinds[0] if len(kinds) == 1 else " and ".join(kinds)), said, first


def _name(error: FrameError) -> str:
    return "unsupported" if isinstance(error, UnsupportedFrameError) else "unreadable"


def theirs(path: Path) -> tuple[NDArray[Any], Image.Image] | None:
    """Return the first page as Pillow has it, where tifffile has the same; None otherwise."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        one = page.asarray(maxworkers=1)
        if page.planarconfig == 2 and one.ndim == 3:
            one = np.moveaxis(one, 0, -1)
    image = Image.open(path)
    image.load()
    two = np.asarray(image)
    if one.shape != two.shape or not one.size or not np.array_equal(one, two, equal_nan=True):
        return None
    return two, image


def compare(frame: NDArray[Any], reference: NDArray[Any], image: Image.Image) -> str:
    """Say how ``frame`` relates to pixels on which tifffile and Pillow agree."""
    if image.mode in ("P", "PA"):
        same = frame.shape == (*reference.shape[:2], 3) and np.array_equal(
            frame, np.asarray(image.convert("RGB"))
        )
        return "same, palette applied" if same else "DIFFERS"
    if image.mode == "CMYK":
        rgb = np.asarray(image.convert("RGB")).astype(int)
        close = frame.shape == rgb.shape and np.abs(frame.astype(int) - rgb).max() <= 1
        return "same within 1 count, CMYK as RGB" if close else "DIFFERS"
    if frame.shape == reference.shape:
        return "same" if np.array_equal(frame, reference, equal_nan=True) else "DIFFERS"
    kept = reference[..., 0] if frame.ndim == 2 else reference[..., :3]
    same = frame.shape == kept.shape and np.array_equal(frame, kept, equal_nan=True)
    return "same, transparency dropped" if same else "DIFFERS"


def read_once(path: Path) -> dict[str, Any]:
    """Read one file with all readers; runs in the limited process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    outcome, said, frame = ours(path)
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    answer = {"outcome": outcome, "said": said, "seconds": seconds, "memory": memory, "verdict": ""}
    try:
        reference = theirs(path)
    except Exception as error:  # noqa: BLE001 a reference that fails is no reference
        answer["verdict"] = f"no reference ({type(error).__name__})"
        return answer
    if reference is None:
        answer["verdict"] = "references disagree"
    else:
        answer["verdict"] = "REFUSED" if frame is None else compare(frame, *reference)
    return answer


def in_process(path: Path, memory_bytes: int, seconds: int) -> Result:
    """Run ``read_once`` in a forked process with limits, and say how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the references print is not our matter
        try:
            os.write(writing, json.dumps(read_once(path)).encode()[:60000])
        except Exception as error:  # noqa: BLE001 this is what the benchmark looks for
            os.write(writing, json.dumps({"outcome": f"CRASH {error!r}"}).encode()[:60000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    answer = json.loads(text) if text else {}
    if not text:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        answer["outcome"] = "HANG" if number == signal.SIGALRM else f"KILLED by signal {number}"
    return Result(
        path.name,
        answer["outcome"],
        answer.get("seconds", 0.0),
        answer.get("memory", 0.0),
        answer.get("said", ""),
        answer.get("verdict", ""),
    )


def main() -> int:
    """Print the tables; exit 1 if a file crashed, hung, or differs from agreeing references."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory-gib", type=float, default=2.0, help="limit of each process")
    parser.add_argument("--seconds", type=int, default=20, help="limit of each file")
    parser.add_argument("--list", action="store_true", help="one line a file")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    _warm()
    files = sorted(path for path in arguments.folder.rglob("*") if path.is_file())
    files = [path for path in files if path.suffix not in (".jsonl", ".md")]
    memory = int(arguments.memory_gib * 2**30)
    results = [in_process(path, memory, arguments.seconds) for path in files]
    if arguments.list:
        for item in results:
            print(f"{item.outcome:22} {item.verdict:34} {item.file}  {item.said}")
        print()
    for title, name in (("outcome", "outcome"), ("against tifffile and Pillow", "verdict")):
        print(f"{title}:")
        counts = collections.Counter(getattr(item, name) for item in results)
        for value, count in counts.most_common():
            print(f"  {count:5}  {value or '-'}")
    agreed = [item for item in results if item.verdict.startswith(("same", "DIFFERS", "REFUSED"))]
    ok = [item for item in agreed if item.verdict.startswith("same")]
    print(f"files: {len(results)}; references agree on {len(agreed)}, and so do we on {len(ok)}")
    for item in agreed:
        if item not in ok:
            print(f"  {item.verdict}: {item.file}  {item.said}")
    slow = max(results, key=lambda item: item.seconds)
    large = max(results, key=lambda item: item.memory_mib)
    print(f"slowest: {1e3 * slow.seconds:.0f} ms, {slow.file}")
    print(f"largest growth of memory: {large.memory_mib:.0f} MiB, {large.file}")
    bad = [item for item in results if item.outcome.startswith(("CRASH", "HANG", "KILLED"))]
    for item in bad:
        print(f"{item.outcome}: {item.file}")
    return 1 if bad or len(ok) < len(agreed) else 0


def _warm() -> None:
    """Load what readers load lazily, so that it is not counted as a file's memory."""
    import imagecodecs

    page = np.zeros((8, 8), np.uint8)
    imagecodecs.lzw_decode(imagecodecs.lzw_encode(b"a" * 8), out=8)
    imagecodecs.png_decode(imagecodecs.png_encode(page))
    imagecodecs.jpeg_decode(imagecodecs.jpeg_encode(page))


if __name__ == "__main__":
    sys.exit(main())
