"""What a soak came to: the table, and which promises were broken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

from soaking.cost import Cost
from soaking.lab import Lab
from soaking.service import Vitals

DAY_S = 86400

# What is promised.
MOST_GROWTH = 0.05  # of resident memory, after warm-up
MOST_MORE_FILES = 2
MOST_COST_RATIO = 1.05


@dataclass(frozen=True)
class Findings:
    """What was measured.

    Attributes
    ----------
    lived, given_up, counted
        Frames of the process that lived to the end: written for it, in runs that were taken
        away again, and as it counts them.
    costs
        Of the first thousand frames and of the last.
    shares
        The part of a core used at rest: at the start, in the middle, at the end.
    vitals
        At the same moments.
    """

    took_s: float
    lived: int
    given_up: int
    counted: int
    costs: tuple[Cost, Cost]
    shares: list[float]
    vitals: list[Vitals]

    @property
    def growth(self) -> float:
        """Of the resident memory, from the start to the end, as a fraction."""
        return self.vitals[-1].resident_mib / self.vitals[0].resident_mib - 1

    @property
    def more_files(self) -> int:
        """Open at the end, compared with the start."""
        return self.vitals[-1].files - self.vitals[0].files

    @property
    def cost_ratio(self) -> float:
        """Of the last frames to the first, each in units of a fresh process's."""
        first, last = self.costs
        return last.relative / first.relative


def promises_broken(lab: Lab, found: Findings, frames: int) -> list[str]:
    """Return what does not hold, each in a sentence."""
    outcomes = sum(_outcomes(lab).values())
    checks = {
        f"{lab.frames} frames were written, not {frames}": lab.frames != frames,
        f"{lab.frames} frames, {outcomes} outcomes": lab.frames != outcomes,
        f"{found.lived} frames for the process that lived, which counts {found.counted}": (
            found.counted < found.lived
        ),
        f"resident memory grew by {found.growth:.1%}": found.growth > MOST_GROWTH,
        f"{found.more_files} more files are open": found.more_files > MOST_MORE_FILES,
        f"the last frames cost {found.cost_ratio:.3f} times what the first did": (
            found.cost_ratio > MOST_COST_RATIO
        ),
    }
    return [*lab.broken, *lab.service.faults, *(text for text, is_so in checks.items() if is_so)]


def show(lab: Lab, found: Findings, broken: list[str]) -> None:
    """Print the table."""
    done, events, (first, last) = lab.done, lab.service.events, found.costs
    outcomes = _outcomes(lab)
    runs = [f"{n} {k.removeprefix('runs: ')}" for k, n in sorted(done.items()) if "runs: " in k]
    times = f"{found.took_s / 60:.0f} min, {DAY_S / found.took_s:.0f} times as fast as a day"
    filled = f"{done['fill_nearly']}, {done['fill'] + done['fill_and_kill']}"
    rows = [
        ("frames written", lab.frames, ""),
        ("outcomes on the disk", sum(outcomes.values()), "as many"),
        ("... segmented, rejected, failed", _in_a_row(outcomes.values()), ""),
        ("missing, twice, of other pixels, or left half written", len(lab.broken), "0"),
        ("runs by their writers", ", ".join(runs), ""),
        (
            "runs moved away, deleted, left in their tree",
            _in_a_row([done["runs moved away"], done["runs deleted"], len(lab.left)]),
            "",
        ),
        ("runs taken away while they were worked on", len(lab.given_up), ""),
        ("24 h took", times, ""),
        ("frames/s, with all pauses", f"{lab.frames / found.took_s:.1f}", ""),
        ("kills (SIGKILL), stops (SIGTERM)", f"{_kills(lab)}, {done['stop'] + 2}", ""),
        (
            "reloads (SIGHUP) with good settings, with bad",
            f"{done['reload']}, {done['reload_with_mistake']}",
            "",
        ),
        ("disk filled nearly, wholly", filled if lab.small_disk else "no: no tmpfs here", ""),
        (
            "pauses for want of room; runs begun again, as the disk was full or they were gone",
            f"{events['folder paused']}; {events['run in trouble']}",
            "",
        ),
        (
            "frames for the process that lived; in runs taken away; as it counts them",
            f"{found.lived}; {found.given_up}; {found.counted}",
            "counts none too few",
        ),
        (
            "its resident memory: start, middle, end",
            _in_a_row(f"{v.resident_mib:.0f}" for v in found.vitals)
            + f" MiB ({found.growth:+.1%})",
            f"at most {MOST_GROWTH:+.0%}",
        ),
        (
            "its open files",
            _in_a_row(v.files for v in found.vitals),
            f"at most {MOST_MORE_FILES} more",
        ),
        (
            "its threads; inotify watches; child processes",
            "; ".join(
                _in_a_row(getattr(v, name) for v in found.vitals)
                for name in ("threads", "watches", "children")
            ),
            "",
        ),
        (
            "its processor time at rest",
            _in_a_row(f"{100 * share:.1f}" for share in found.shares) + " % of a core",
            "",
        ),
        (
            "its processor time for a frame: first thousand, last thousand",
            f"{mean(first.lived):.2f}, {mean(last.lived):.2f} ms",
            "",
        ),
        (
            "that of a fresh process, in turns with it, on the same frames",
            f"{mean(first.fresh):.2f}, {mean(last.fresh):.2f} ms",
            "",
        ),
        (
            "cost of the last thousand against the first, in units of the fresh process's",
            f"{found.cost_ratio:.3f}",
            f"at most {MOST_COST_RATIO}",
        ),
    ]
    print("\n| what | found | promised |\n|---|---|---|")
    for name, value, promised in rows:
        print(f"| {name} | {value} | {promised} |")
    print()
    for text in broken[:50]:
        print(f"BROKEN: {text}")
    print(f"{len(broken)} promises broken" if broken else "every promise was kept", flush=True)


def _outcomes(lab: Lab) -> dict[str, int]:
    return {name: lab.done[f"frames {name}"] for name in ("segmented", "rejected", "failed")}


def _kills(lab: Lab) -> int:
    return lab.done["kill"] + lab.done["fill_and_kill"]


def _in_a_row(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
