"""Frames per second of ``segbatch process``, and of what it could be compared with.

    python bench/throughput.py [--quick] [--network shipped|large] [--rounds 5]

Simulates a run of 1440 x 1080 px, 16-bit frames that are all good, and times in
interleaved rounds, each row's median being shown:

- ``segbatch process``, from raw files to masks and QC logs on the disk;
- the bare engine on the same frames in memory, normalised, whole, results
  thrown away, in the configuration that was fastest in a trial: the ceiling;
- MONAI's sliding window (512 px, overlap 0.25, Gaussian) over the same engine
  at the same precision, and over torch as its users run it;
- a plain torch loop over whole frames.

Only ``segbatch process`` reads, hashes, judges, normalises and writes; the
others are not charged with any of that.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import end_to_end
import frames
import machine

from segbatch.infer.engine.machine import available_threads

if TYPE_CHECKING:
    import networks
    import peers

IN_MEMORY = 16  # different frames that the peers take in turn
TARGETS = {"ceiling": 0.90, "MONAI, same engine": 1.9, "MONAI, torch": 5.0}


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    ``frames`` of the run that is processed; the peers run for about ``seconds`` a
    round, after ``trials`` of each configuration.
    """

    rounds: int
    frames: int
    seconds: float
    trials: int


@dataclass
class Row:
    """One contender: how it is run, and each round's frames/s and processor ms a frame."""

    label: str
    how: str
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def compare(network: networks.Network, raws: list[Path], effort: Effort, folder: Path) -> None:
    """Measure one network and print its table."""
    run = frames.subset(raws, effort.frames, folder / "run")
    model = None if network.label.startswith("shipped") else network.model.file.with_suffix(".json")

    def process(precision: str) -> end_to_end.EndToEnd:
        return end_to_end.run(run, effort.frames, model, precision, folder / "out")

    first = process("auto")
    if first.engine != "openvino":
        raise SystemExit(f"segbatch chose {first.engine} here; the peers are written for OpenVINO")
    contenders = _peers(network, raws[:IN_MEMORY], first.precision, effort.trials)
    print(
        f"\n## {network.label}: {network.parameters / 1e6:.2f} M parameters, "
        f"openvino {first.precision}\n",
        flush=True,
    )
    counts = {label: _count(peer, effort.seconds) for label, peer in contenders.items()}
    rows = {label: Row(label, peer.how) for label, peer in contenders.items()}
    ours: list[end_to_end.EndToEnd] = []
    turns: list[Callable[[], None]] = [lambda: ours.append(process(first.precision))]
    for label, peer in contenders.items():
        turns.append(_turn(rows[label], peer, counts[label]))
    for number in range(effort.rounds):
        for at in range(len(turns)):
            turns[(at + number) % len(turns)]()
    _print(ours, list(rows.values()), effort.frames)


def _peers(
    network: networks.Network, raws: list[Path], precision: str, trials: int
) -> dict[str, peers.Peer]:
    import peers  # torch and MONAI load only where they are used

    manifest, file, threads = network.model.manifest, network.model.file, available_threads()
    padded = frames.in_memory(raws, manifest, padded=True)
    plain = frames.in_memory(raws, manifest, padded=False)
    streams = [count for count in range(1, threads + 1) if threads % count == 0]
    ceiling = peers.best_of(
        (
            peers.bare_engine(file, precision, padded, count, threads, pinned)
            for count in streams
            for pinned in (False, True)
        ),
        count=2 * threads,
        trials=trials,
    )
    same_engine = peers.best_of(
        (
            peers.monai_on_engine(file, precision, plain, batch, threads, side_by_side=apart)
            for batch, apart in ((1, False), (4, False), (4, True))
        ),
        count=2,
        trials=trials,
    )
    on_torch = peers.best_of(
        (peers.monai_on_torch(network.torch, plain, batch) for batch in (1, 4)), count=1, trials=2
    )
    return {
        "ceiling": ceiling,
        "MONAI, same engine": same_engine,
        "MONAI, torch": on_torch,
        "plain torch": peers.plain_torch(network.torch, padded),
    }


def _count(peer: peers.Peer, seconds: float) -> int:
    """Return how many frames take about ``seconds``; this also warms the peer up."""
    peer.run(1)
    return max(2, round(seconds / peer.run(1)))


def _turn(row: Row, peer: peers.Peer, count: int) -> Callable[[], None]:
    def turn() -> None:
        before = time.process_time()
        row.rates.append(count / peer.run(count))
        row.cpu_ms.append(1e3 * (time.process_time() - before) / count)

    return turn


def _print(ours: list[end_to_end.EndToEnd], rows: list[Row], count: int) -> None:
    def median(name: str) -> float:
        return float(statistics.median(getattr(run, name) for run in ours))

    print("| | how | frames/s | of each round | processor ms a frame | ratio | target |")
    print("|---|---|---|---|---|---|---|")
    files = Row("segbatch process", "files to files", [run.frames_per_s for run in ours])
    files.cpu_ms = [run.cpu_ms for run in ours]
    for row in (files, *rows):
        ratio = target = ""
        if row is not files:
            each = [mine / other for mine, other in zip(files.rates, row.rates, strict=True)]
            ratio = f"{statistics.median(each):.2f}"
            target = f">= {TARGETS[row.label]:.2f}" if row.label in TARGETS else ""
        print(
            f"| {row.label} | {row.how} | {statistics.median(row.rates):.3g} | "
            f"{' '.join(f'{rate:.3g}' for rate in row.rates)} | "
            f"{statistics.median(row.cpu_ms):.0f} | {ratio} | {target} |"
        )
    print(
        f"\nsegbatch process: {median('frames_per_s'):.3g} frames/s while the run is under way; "
        f"{median('first_to_last_per_s'):.3g} from the first mask to the last; "
        f"{median('command_per_s'):.3g} over the whole command, which took "
        f"{median('command_s'):.1f} s for {count} frames with start-up and the final judgement.",
        flush=True,
    )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("shipped", "large"), action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, help="frames of a run that is processed")
    parser.add_argument("--quick", action="store_true", help="few frames, one round: a smoke test")
    given = parser.parse_args()
    import networks  # after --help is answered

    wanted = given.network or ["shipped", "large"]
    for line in machine.describe():
        print(line, flush=True)
    with tempfile.TemporaryDirectory(prefix="segbatch-bench-") as name:
        folder = Path(name)
        sizes = {"shipped": 24 if given.quick else 200, "large": 8 if given.quick else 40}
        sizes = {network: given.frames or count for network, count in sizes.items()}
        raws = frames.write_good_run(
            folder / "raws", max(IN_MEMORY, *(sizes[network] for network in wanted)), seed=1
        )
        for which in wanted:
            place = folder / which
            place.mkdir()
            network = networks.shipped() if which == "shipped" else networks.large(place)
            effort = Effort(
                rounds=1 if given.quick else given.rounds,
                frames=sizes[which],
                seconds=1.0 if given.quick else 5.0,
                trials=1 if given.quick else 4,
            )
            compare(network, raws, effort, place)


if __name__ == "__main__":
    main()
