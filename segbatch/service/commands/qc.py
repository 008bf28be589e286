"""``segbatch qc``: judge only, write nothing."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

from segbatch.acquire.source import open_source
from segbatch.errors import FrameError
from segbatch.frame import gray, hash_pixels
from segbatch.infer.quality.measures import measure
from segbatch.infer.quality.verdict import Judge
from segbatch.service.journey import group_of, quality_of
from segbatch.service.record.names import told
from segbatch.service.selection import Selection, select
from segbatch.settings import Settings

_PIPED_COLUMNS = 160  # no file name is cut where nobody's screen sets the width


def qc_command(paths: Sequence[str], settings: Settings, *, as_json: bool) -> int:
    """Print the verdict on every frame; return 1 when a frame could not be read, else 0."""
    lines = []
    for selection in select(paths):
        lines += list(judge_all(selection, settings))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(lines), indent=2))
    else:
        _print_table(lines)
    return 1 if any(line["outcome"] == "failed" for line in lines) else 0


def judge_all(selection: Selection, settings: Settings) -> Iterator[dict[str, Any]]:
    """Judge every frame of a run with the whole run's statistics, in the order of the files."""
    judge = Judge(settings.quality)
    seen: dict[tuple[int, int], tuple[str, dict[str, Any], str]] = {}
    failed: dict[tuple[int, int], tuple[str, FrameError]] = {}
    for index, raw in enumerate(selection.raws):
        if selection.only is not None and raw not in selection.only:
            continue
        name = str(raw.relative_to(selection.root).parent / told(raw))
        try:
            source = open_source(
                raw,
                bit_depth=settings.bit_depth,
                profile=settings.profile,
                max_file_gib=settings.max_file_gib,
            )
        except FrameError as error:
            failed[index, 0] = (name, error)
            continue
        with source:
            for page in range(source.frame_count):
                try:
                    frame = source.read(page)
                except FrameError as error:
                    failed[index, page] = (name, error)
                    continue
                measures = measure(gray(frame.pixels), frame.ceiling)
                group = group_of(frame)
                judge.judge((index, page), measures, hash_pixels(frame.pixels), group)
                seen[index, page] = (name, msgspec.to_builtins(measures), group)
    verdicts = judge.settle()
    for key in sorted([*seen, *failed]):
        if key in failed:
            name, failure = failed[key]
            yield {
                "file": name,
                "page": key[1],
                "outcome": "failed",
                "reasons": [failure.reason],
                "error": str(failure),
                "quality": {},
            }
            continue
        name, values, group = seen[key]
        verdict = verdicts[key]
        yield {
            "file": name,
            "page": key[1],
            "outcome": "accepted" if verdict.accepted else "rejected",
            "reasons": list(verdict.reasons),
            "error": None,
            "quality": quality_of(values, verdict, group),
        }


def _print_table(lines: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = ("saturated_fraction", "background", "noise_sigma", "snr", "focus")
    table = Table("file", "page", "verdict", *shown)
    for line in lines:
        verdict = " ".join(line["reasons"]) or line["outcome"]
        values = (line["quality"].get(name) for name in shown)
        table.add_row(
            line["file"],
            str(line["page"]),
            verdict,
            *("" if value is None else f"{value:.4g}" for value in values),
        )
    width = None if sys.stdout.isatty() else _PIPED_COLUMNS
    Console(file=sys.stdout, highlight=False, width=width).print(table)
    counts = Counter(" ".join(line["reasons"]) or line["outcome"] for line in lines)
    click.echo(", ".join(f"{count} {what}" for what, count in counts.most_common()))
