"""The documents say what is true: their commands run, their settings parse, their links lead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.house.documents import anchors, blocks, check, links
from tests.house.places import ROOT, written

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = written(".md")
with_blocks = [file for file in DOCUMENTS if blocks(file.read_text(encoding="utf-8"))]
EXAMPLE = """\
# A title, with `code`

[here](#a-title-with-code) and [there](https://example.org)

<!-- not run: needs a camera -->
```bash
false
```

```console
$ echo one two
one ...
```
"""


def name(file: Path) -> str:
    """Return a document's path in the project."""
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", with_blocks, ids=name)
def test_code_blocks_run(file: Path, tmp_path: Path) -> None:
    """Every code block of a document works as it stands, or says why it is not run."""
    for block in blocks(file.read_text(encoding="utf-8")):
        if block.not_run:
            continue
        try:
            check(block, tmp_path)
        except Exception as error:
            error.add_note(f"{name(file)}, line {block.line}: the {block.language} block")
            raise


@pytest.mark.parametrize("file", DOCUMENTS, ids=name)
def test_links_lead_somewhere(file: Path) -> None:
    """Every relative link of a document leads to a file, and to a heading where it names one."""
    broken = []
    for target in links(file.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        if not there.exists() or (
            anchor and anchor not in anchors(there.read_text(encoding="utf-8"))
        ):
            broken.append(target)

    assert broken == []


def test_a_block_that_cannot_run_is_recognised() -> None:
    """The comment above a block gives the reason for which it is not run."""
    camera, transcript = blocks(EXAMPLE)

    assert camera.not_run == "needs a camera"
    assert transcript.not_run is None


def test_a_wrong_transcript_is_refused(tmp_path: Path) -> None:
    """A console block whose answer differs from what is written fails."""
    [block] = blocks("```console\n$ echo one\ntwo\n```\n")

    with pytest.raises(AssertionError, match="wanted"):
        check(block, tmp_path)


def test_an_unknown_setting_in_a_document_is_refused(tmp_path: Path) -> None:
    """A toml block with a key that is no setting fails."""
    [block] = blocks("```toml\ntile_pixels = 512\n```\n")

    with pytest.raises(Exception, match="tile_px"):
        check(block, tmp_path)


def test_links_and_headings_are_found() -> None:
    """A link to a heading is found and answered by the heading; a web address is left alone."""
    assert links(EXAMPLE) == ["#a-title-with-code"]
    assert "a-title-with-code" in anchors(EXAMPLE)
