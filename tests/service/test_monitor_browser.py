"""The live page as a person sees it, in a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from tests.service import runs
from tests.service.browsing import MISSING, Browser, chromium
from tests.service.watching import Watched, recorded, watched

pytestmark = pytest.mark.skipif(chromium() is None, reason=MISSING)

HOSTILE = "<img src=x onerror=document.title='owned'>&quot;\u202e.tif"
PICTURES = "return document.querySelectorAll('.layers img').length"
WORD = "return document.getElementById('state-word').textContent"
TEXT = "return document.body.innerText"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start one browser with an empty profile."""
    with Browser(tmp_path_factory.mktemp("chromium"), 1280, 1400) as browser:
        yield browser


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Process a small run."""
    folder = runs.make_run(tmp_path_factory.mktemp("browser") / "run", frames=30, stack_frames=0)
    assert runs.segbatch("process", folder).returncode == 1  # one file is broken
    return folder


@pytest.fixture
def service() -> Iterator[Watched]:
    """Serve the pages of a service without frames."""
    with watched() as service:
        yield service


def test_the_page_shows_the_run(browser: Browser, service: Watched, processed: Path) -> None:
    """Frame, mask, counts, thumbnails and curves appear, and the console stays empty."""
    service.note_all(processed)
    records = [record for _, record in recorded(processed)]
    refused = [record for record in records if record.outcome != "segmented"]
    browser.open(service.pages.url)
    browser.wait_for(PICTURES, lambda count: count == 2)
    browser.wait_for(
        "return document.querySelectorAll('.thumbs img').length",
        lambda count: count == len(refused) - 1,
    )
    text = browser.run(TEXT)

    assert browser.run(WORD) == "running"
    assert browser.run("return document.getElementById('segmented').textContent") == str(
        len(records) - len(refused)
    )
    for part in ("unreadable", "the raw file cannot be read", "/data/incoming", "openvino, bf16"):
        assert part in text
    curves = "return [...document.querySelectorAll('svg[data-curve] .mean')].length"
    assert browser.run(curves) == 4
    # The broken file's picture is answered with 404, which the browser notes.
    assert [line for line in browser.complaints() if "404" not in line] == []


def test_the_mask_lies_over_the_frame(browser: Browser, service: Watched, processed: Path) -> None:
    """With the mask shown there is its colour on the frame, without it grey alone."""
    service.note_all(processed)
    browser.open(service.pages.url)
    browser.wait_for(PICTURES, lambda count: count == 2)
    with_mask = coloured(browser)
    browser.run("document.getElementById('mask-on').click()")

    assert with_mask > 500
    assert coloured(browser) == 0


def coloured(browser: Browser) -> int:
    """Return how many pixels of the last frame have a colour."""
    box = browser.run(
        "const box = document.getElementById('stage').getBoundingClientRect();"
        "return [box.left, box.top, box.right, box.bottom].map(Math.round)"
    )
    window = cv2.imdecode(np.frombuffer(browser.picture(), np.uint8), cv2.IMREAD_COLOR)
    assert window is not None
    left, top, right, bottom = box
    inside = window[top + 8 : bottom - 8, left + 8 : right - 8].astype(int)
    return int(np.count_nonzero(np.ptp(inside, axis=2) > 40))


def test_names_of_files_are_text(
    browser: Browser, service: Watched, processed: Path, tmp_path: Path
) -> None:
    """A file whose name is markup is shown by that name, and nothing of it comes to life."""
    (raw, record) = next(one for one in recorded(processed) if one[1].outcome == "segmented")
    hostile = tmp_path / HOSTILE
    shutil.copy2(raw, hostile)
    service.monitor.note(hostile, record, processed)
    rejected = msgspec.structs.replace(
        record, outcome="rejected", reasons=["blurred"], error=HOSTILE, mask=None
    )
    service.monitor.note(hostile, rejected, processed)
    folder = msgspec.structs.replace(service.status().folders[0], path=HOSTILE, error=HOSTILE)
    service.changes = {"why": HOSTILE, "folders": [folder]}
    browser.open(service.pages.url)
    browser.wait_for(PICTURES, lambda count: count == 2)
    browser.wait_for("return document.querySelectorAll('.thumbs img').length")

    for where in ("#last-file", ".thumbs .name", "td.path", "td.error", "#why"):
        assert browser.run(f"return document.querySelector('{where}').textContent") == HOSTILE
    assert browser.run("return document.title") == "segbatch"
    assert browser.run("return document.querySelectorAll('img[src=x]').length") == 0
    assert browser.complaints() == []


def test_a_service_without_frames_says_so(browser: Browser, service: Watched) -> None:
    """Before the first frame the page is whole, and says that there is none yet."""
    browser.open(service.pages.url)
    browser.wait_for(WORD, lambda word: word == "running")
    text = browser.run(TEXT)

    assert "No frames yet." in text
    assert "none so far" in text
    assert browser.complaints() == []


def test_a_pause_gives_its_reason(browser: Browser, service: Watched) -> None:
    """A paused service is shown as such, with the reason, in the title too."""
    service.changes = {"state": "paused", "why": "1.9 GiB left on /data"}
    browser.open(service.pages.url)
    browser.wait_for(WORD, lambda word: word == "paused")

    assert "1.9 GiB left on /data" in browser.run(TEXT)
    assert browser.run("return document.title").startswith("paused")


def test_a_service_that_is_gone_is_told(browser: Browser, processed: Path) -> None:
    """The page says since when nothing answers, keeps what it had, and goes on by itself."""
    with watched() as service:
        service.note_all(processed)
        browser.open(service.pages.url)
        browser.wait_for(PICTURES, lambda count: count == 2)
        listen = service.pages.url.removeprefix("http://").rstrip("/")
    browser.wait_for(WORD, lambda word: word == "no answer")
    assert "has not answered since" in browser.run(TEXT)
    assert browser.run(PICTURES) == 2
    with watched(listen):
        browser.wait_for(WORD, lambda word: word == "running")


def test_a_raw_file_that_moved_is_told(
    browser: Browser, service: Watched, processed: Path, tmp_path: Path
) -> None:
    """Where the picture of the last frame cannot be had, its place says why."""
    (raw, record) = next(one for one in recorded(processed) if one[1].outcome == "segmented")
    service.monitor.note(tmp_path / raw.name, record, processed)
    browser.open(service.pages.url)
    note = "return document.getElementById('stage-note').textContent"

    assert browser.wait_for(note, lambda text: "raw" in text) == "the raw file is no longer there"
    assert raw.name in browser.run(TEXT)


@pytest.mark.parametrize("width_px", [1280, 800, 400])
def test_the_page_fits_the_window(
    browser: Browser, service: Watched, processed: Path, width_px: int
) -> None:
    """On a screen, half of one and a telephone nothing stands out sideways, and nothing jumps."""
    browser.resize(width_px, 1000)
    height = "return document.documentElement.scrollHeight"
    browser.open(service.pages.url)
    browser.wait_for(WORD, lambda word: word == "running")
    empty = browser.run(height)
    service.note_all(processed)
    browser.wait_for(PICTURES, lambda count: count == 2)

    assert browser.run("return document.documentElement.scrollWidth") <= width_px
    assert abs(browser.run(height) - empty) <= 48  # a line of facts may wrap
