"""Findings on engines as a person reads them: every figure, at any width."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segbatch.infer.engine.made.artifact import Likeness

LIKENESS = ("p max", "p mean", "mask", "IoU")


def figures(alike: Likeness | None) -> list[str]:
    """Return the cells under ``LIKENESS``; empty ones for what there is none of."""
    if alike is None:
        return [""] * len(LIKENESS)
    largest, mean = alike.max_probability_difference, alike.mean_probability_difference
    return [
        "" if largest is None else f"{largest:.2g}",
        "" if mean is None else f"{mean:.1e}",
        f"{alike.mask_agreement:.4%}",
        "" if alike.iou is None else f"{alike.iou:.2%}",
    ]


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[str]
) -> None:
    """Print a table on stdout, as wide as it has to be.

    A terminal that is narrower would break its lines anywhere: there, each row becomes lines of
    heading and cell.

    Parameters
    ----------
    headings
        Of the columns.
    rows
        Cells, as many as headings.
    words
        The headings of columns that are no figures and stand to the left.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="left" if heading in words else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=sys.stdout, highlight=False)
    ample = console.options.update_width(1 << 16)
    needed = Measurement.get(console, ample, table).maximum
    if sys.stdout.isatty() and needed > console.width:
        for row in rows:
            told = [f"{key}: {cell}" for key, cell in zip(headings, row, strict=True) if cell]
            console.print(Text("\n  ".join(told)), soft_wrap=True)
        return
    console.width = needed
    console.print(table)
