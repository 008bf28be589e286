"""Tables of engines are read whole, on whatever they are printed."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from contextlib import suppress

import pytest

from segbatch.infer.engine.made.artifact import Likeness
from segbatch.infer.engine.made.tables import LIKENESS, figures, print_table

ALIKE = Likeness(
    frames="8 of a folder with a long name",
    count=8,
    max_probability_difference=0.00012,
    mean_probability_difference=1e-8,
    mask_agreement=0.99999,
    iou=None,
)
ROW = ["onnxruntime fp32 (source)", ALIKE.frames, *figures(ALIKE), "12345.6", "100.0x", "passed"]
HEADINGS = ("engine", "frames", *LIKENESS, "ms/frame", "speed", "gate")
PRINTED = f"""
from segbatch.infer.engine.made.tables import print_table
print_table({HEADINGS!r}, [{ROW!r}], words=("engine", "frames", "gate"))
"""


@pytest.mark.parametrize("columns", ["20", "80", "400"])
def test_piped_a_table_holds_every_cell(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever width the surroundings tell, each row is one line with all of its cells."""
    monkeypatch.setenv("COLUMNS", columns)
    print_table(HEADINGS, [ROW], words=("engine", "frames", "gate"))
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if "onnxruntime" in line)

    assert all(cell in line for cell in ROW)
    assert any(all(heading in line for heading in HEADINGS) for line in lines)
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)


def test_a_cell_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in a cell are printed as they are."""
    print_table(("engine",), [["[bold]net[/bold]"]], words=("engine",))

    assert "[bold]net[/bold]" in capsys.readouterr().out


def on_a_terminal(columns: int) -> str:
    """Print the table on a terminal of a width; return what it shows."""
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-c", PRINTED], stdin=theirs, stdout=theirs, env={**kept, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the end of a terminal, on Linux
            while part := os.read(ours, 4096):
                shown += part
        assert process.wait() == 0
    os.close(ours)
    return shown.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_narrow_terminal_gets_a_line_for_each_cell() -> None:
    """Where the table is wider than the terminal, every heading stands beside its cell."""
    lines = [line.strip() for line in on_a_terminal(60).splitlines()]
    wide = on_a_terminal(200)

    assert lines == [f"{key}: {cell}" for key, cell in zip(HEADINGS, ROW, strict=True) if cell]
    assert any(all(cell in line for cell in ROW) for line in wide.splitlines())
