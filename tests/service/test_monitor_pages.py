"""The pages as Prometheus, a script or somebody unfriendly asks for them: real requests."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import msgspec
import numpy as np
import pytest
import tifffile

from segbatch.errors import UsageError
from segbatch.service.monitor import preview, server
from segbatch.service.monitor.monitor import Monitor
from segbatch.service.monitor.pages import Pages
from segbatch.service.monitor.status import STATES, ServiceStatus
from segbatch.service.record.names import Register
from segbatch.service.record.products import Products, page_of
from segbatch.service.record.schema import QcRecord
from segbatch.service.record.stack import StackRecorder
from tests.service import runs
from tests.service.watching import Watched, open_raw, recorded, status_of, watched

PATHS = ("/", "/page.css", "/page.js", "/curves.js", "/icon.svg", "/status", "/live.json",
         "/metrics", "/healthz")  # fmt: skip
CAMERA = {
    "state": "acquiring", "frames_taken": 9, "frames_written": 9, "dropped": 2,
    "ring_used": 0, "ring_capacity": 64, "run": "", "error": None, "retry_in_s": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Process a small run once; tests that change it take a copy."""
    folder = runs.make_run(tmp_path_factory.mktemp("watched") / "run", frames=20, stack_frames=0)
    done = runs.segbatch("process", folder)
    assert done.returncode == 1, done.stderr  # one file is broken
    return folder


@pytest.fixture
def service() -> Iterator[Watched]:
    """Serve the pages of a service without frames."""
    with watched() as service:
        yield service


@pytest.fixture
def busy(service: Watched, processed: Path) -> Watched:
    """Tell the service of every frame of the run."""
    service.note_all(processed)
    return service


@pytest.fixture
def own(service: Watched, processed: Path, tmp_path: Path) -> tuple[Watched, Path, QcRecord]:
    """Tell the service of one segmented frame that lies in a folder of the test."""
    raw, record = next(one for one in recorded(processed) if one[1].outcome == "segmented")
    assert record.mask is not None
    shutil.copy2(raw, tmp_path)
    shutil.copy2(processed / record.mask.file, tmp_path)
    service.monitor.note(tmp_path / raw.name, record, tmp_path)
    return service, tmp_path / raw.name, record


def test_every_page_is_guarded(busy: Watched) -> None:
    """Each page forbids foreign scripts, guessing of types, keeping and framing."""
    for path in (*PATHS, "/nothing"):
        headers = busy.ask(path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none';")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "Python" not in headers["Server"]


def test_the_page_asks_nobody_else(busy: Watched) -> None:
    """Neither the page nor its script or style names another server or holds inline code."""
    for path in PATHS[:5]:
        text = busy.ask(path).body.decode()
        assert not any(word in text for word in ("https:", "//cdn", "innerHTML", "eval(", "style="))
        assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")


def test_status_is_that_of_the_service(busy: Watched) -> None:
    """What `/status` tells is the status itself, and can be read back as one."""
    answer = busy.ask("/status")

    assert answer.headers["Content-Type"] == "application/json"
    assert msgspec.json.decode(answer.body, type=ServiceStatus) == busy.status()


@pytest.mark.parametrize("state", STATES)
def test_health_is_for_machines(service: Watched, state: str) -> None:
    """A service that takes frames in is healthy; any other says why it is not."""
    service.changes = {"state": state, "why": "the disk is full"}
    answer = service.ask("/healthz")

    assert answer.status == (200 if state in {"running", "reloading"} else 503)
    assert json.loads(answer.body) == {
        "healthy": answer.status == 200, "state": state, "why": "the disk is full",
    }  # fmt: skip


@pytest.mark.parametrize(("open_folders", "status"), [(2, 200), (1, 200), (0, 503)])
def test_health_asks_whether_any_folder_takes_frames_in(
    service: Watched, open_folders: int, status: int
) -> None:
    """A service that runs while none of its folders can be watched is not healthy."""
    (folder,) = service.status().folders
    shut = msgspec.structs.replace(folder, takes_in=False, error="gone")
    service.changes = {"folders": [*[folder] * open_folders, *[shut] * (2 - open_folders)]}
    assert service.ask("/healthz").status == status


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (apt-get install --no-install-recommends prometheus)",
)
@pytest.mark.parametrize("full", [False, True])
def test_promtool_finds_no_fault(service: Watched, processed: Path, *, full: bool) -> None:
    """Prometheus' own checker accepts the metrics of an idle and of a busy service."""
    if full:
        service.note_all(processed)
        service.changes = {"camera": CAMERA, "dropped": 2}
    answer = service.ask("/metrics")
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=answer.body, capture_output=True, check=False
    )

    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


def test_metrics_agree_with_the_records(busy: Watched, processed: Path) -> None:
    """Frames in are frames out, in the metrics as in the records on disk."""
    records = [record for _, record in recorded(processed)]
    found = samples(busy)

    for outcome in ("segmented", "rejected", "failed"):
        there = sum(record.outcome == outcome for record in records)
        assert found[f'segbatch_frames_total{{outcome="{outcome}"}}'] == there
    assert found['segbatch_rejects_total{reason="unreadable"}'] == 1
    read = sum(record.timing_ms.read > 0 for record in records)
    assert found['segbatch_stage_seconds_bucket{le="+Inf",stage="read"}'] == read
    assert found["segbatch_last_frame_timestamp_seconds"] > 1.7e9
    assert found["process_resident_memory_bytes"] > 0


def test_metrics_tell_of_the_surroundings(service: Watched) -> None:
    """State, folders, disk, camera and engine stand in the metrics with their labels."""
    first = service.status().folders[0]
    strange = msgspec.structs.replace(
        first, path=os.fsdecode(b'/data/\xff"\n'), error="gone", disk_free_bytes=None
    )
    service.changes = {
        "state": "paused", "dropped": 2, "folders": [first, strange, first],
        "camera": {**CAMERA, "state": "failed"},
    }  # fmt: skip
    found = samples(service)

    assert [name for name in STATES if found[f'segbatch_state{{state="{name}"}}']] == ["paused"]
    assert found['segbatch_disk_free_bytes{folder="/data/incoming"}'] == 123 << 30
    assert found['segbatch_folder_up{folder="/data/\\\\xff\\"\\n"}'] == 0
    assert found["segbatch_camera_up"] == 0
    assert found["segbatch_camera_acquiring"] == 0
    assert found["segbatch_camera_frames_total"] == CAMERA["frames_taken"]
    assert found["segbatch_dropped_frames_total"] == 2
    assert any(line.startswith('segbatch_engine_info{engine="openvino"') for line in found)


def samples(service: Watched) -> dict[str, float]:
    """Return the value of each sample of the metrics."""
    lines = service.ask("/metrics").body.decode().splitlines()
    parts = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in parts}


def test_a_frame_and_its_mask_are_shown(own: tuple[Watched, Path, QcRecord]) -> None:
    """The last frame comes as grey levels, its mask as outlines where the mask file has objects."""
    service, raw, record = own
    frame = service.json("/live.json")["frame"]
    grey = decoded(service.ask(f"/frame/{frame['id']}.png").body)
    mask = decoded(service.ask(f"/mask/{frame['id']}.png").body)
    assert record.mask is not None
    classes = tifffile.imread(raw.with_name(record.mask.file))
    drawn = cv2.resize(mask[..., 3], classes.shape[::-1], interpolation=cv2.INTER_NEAREST)

    assert (frame["file"], frame["mask"]["objects"]) == (raw.name, record.mask.object_count)
    assert grey.shape == tifffile.imread(raw).shape
    assert grey.max() - grey.min() > 200
    assert np.mean(drawn[classes > 0] > 0) > 0.98
    assert not drawn[cv2.dilate(classes, np.ones((5, 5))) == 0].any()


def test_masks_of_a_stack_are_shown_before_its_end(
    service: Watched, processed: Path, tmp_path: Path
) -> None:
    """The mask of a frame is shown while the stack it belongs to is still being written."""
    (raw, record) = next(one for one in recorded(processed) if one[1].outcome == "segmented")
    assert record.mask is not None
    classes = tifffile.imread(processed / record.mask.file)
    names = Register(tmp_path).add([tmp_path / "stack.tif"])[tmp_path / "stack.tif"]
    recorder = StackRecorder(names, probabilities=False, labels=False)
    try:
        recorder.commit(0, msgspec.structs.replace(record, outcome="rejected", mask=None), None)
        products = Products(page_of(classes), None, None, None)
        service.monitor.note(raw, recorder.commit(1, record, products), tmp_path)
    finally:
        recorder.close()
    shot = service.json("/live.json")["frame"]["id"]
    drawn = decoded(service.ask(f"/mask/{shot}.png").body)[..., 3]

    assert not names.mask.exists()
    small = cv2.resize(drawn, classes.shape[::-1], interpolation=cv2.INTER_NEAREST)
    assert np.mean(small[classes > 0] > 0) > 0.98


def test_rejects_are_shown_with_their_reasons(busy: Watched, processed: Path) -> None:
    """Refused frames are told newest first, with reason and rule; those that can be are shown."""
    refused = busy.json("/live.json")["refused"]
    known = {record.frame.file: record for _, record in recorded(processed)}

    assert [shot["file"] for shot in refused] == sorted(
        (name for name, record in known.items() if record.outcome != "segmented"),
        key=[raw.name for raw, _ in recorded(processed)].index,
        reverse=True,
    )
    for shot in refused:
        assert shot["reasons"] == known[shot["file"]].reasons
        answer = busy.ask(f"/thumb/{shot['id']}.png")
        if shot["outcome"] == "failed":
            assert (answer.status, answer.body) == (404, b"the raw file cannot be read\n")
        else:
            assert decoded(answer.body).shape[1] == 240


def decoded(png: bytes) -> np.ndarray:
    """Return the pixels of a PNG."""
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, png
    return pixels


def test_frames_that_cannot_be_shown_say_why(own: tuple[Watched, Path, QcRecord]) -> None:
    """A raw file that changed, broke or moved away and a mask that did are told in words."""
    service, raw, record = own
    shot = service.json("/live.json")["frame"]["id"]
    assert record.mask is not None
    mask = raw.with_name(record.mask.file)

    def why(kind: str) -> str:
        answer = service.ask(f"/{kind}/{shot}.png")
        assert answer.status == 404
        return answer.body.decode().strip()

    mask.write_bytes(b"no mask at all")
    assert why("mask") == "the mask cannot be read"
    mask.unlink()
    assert why("mask") == "the mask is not on disk"
    os.utime(raw, ns=(0, 0))
    assert why("frame") == "the raw file has changed since"
    raw.write_bytes(b"nothing")
    assert why("frame") == "the raw file cannot be read"
    raw.unlink()
    assert why("frame") == "the raw file is no longer there"


def test_very_large_frames_are_not_opened_up(
    own: tuple[Watched, Path, QcRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame above the limit is not decoded for the page."""
    service, _, _ = own
    monkeypatch.setattr(preview, "LARGEST_BYTES", 1000)
    shot = service.json("/live.json")["frame"]["id"]

    assert b"not shown" in service.ask(f"/frame/{shot}.png").body
    assert b"too large" in service.ask(f"/mask/{shot}.png").body


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "float32", "float64", "bool"])
def test_any_pixels_can_be_stretched(dtype: str) -> None:
    """Frames of every kind become grey levels, also those with values that are no numbers."""
    pixels = (np.arange(300 * 400).reshape(300, 400) % 200).astype(dtype)
    if pixels.dtype.kind == "f":
        pixels[:3] = np.array([np.nan, np.inf, -np.inf])[:, np.newaxis]
    grey = preview.stretched(preview._small(pixels, 240), None)

    assert grey.shape == (180, 240)
    assert grey.dtype == np.uint8


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/frame/../../../etc/passwd", "/frame/%2e%2e%2fpasswd.png", "//etc",
     "/frame/deadbeef-1.png", "/thumb/1.png", "/assets/page.js", "/page.html", "/status/", "/%00",
     "http://example.org/status", "/frame/" + "a" * 5000 + ".png"],
)  # fmt: skip
def test_only_pages_can_be_asked_for(busy: Watched, path: str) -> None:
    """No path leads to a file: anything but a page is not found."""
    assert busy.ask(path).status in {404, 421}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_nothing_can_be_changed(service: Watched, method: str) -> None:
    """Requests that are made to change something are refused."""
    assert service.ask("/status", method).status in {405, 501}


def test_head_gives_the_headers_alone(service: Watched) -> None:
    """HEAD is answered like GET, without the page."""
    answer = service.ask("/status", "HEAD")

    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 100


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("localhost:9417", 200), ("127.0.0.1:1", 200), ("[::1]:9417", 200),
     ("evil.example", 421), ("evil.example:9417", 421), ("127.0.0.1.evil.example", 421),
     ("localhost.evil.example", 421), ("192.168.1.5", 421), ("", 421), ("[", 421)],
)  # fmt: skip
def test_foreign_names_are_refused_on_loopback(service: Watched, host: str, status: int) -> None:
    """A page of another site cannot read what is served to this machine alone."""
    assert service.ask("/status", Host=host).status == status


def test_any_name_is_answered_on_other_networks(processed: Path) -> None:
    """Bound to every address, the pages answer under whatever name the machine has."""
    with watched("0.0.0.0:0") as service:
        assert urlsplit(service.pages.url).port
        port = urlsplit(service.pages.url).port
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            line.sendall(b"GET /healthz HTTP/1.1\r\nHost: scope-pc.example\r\n\r\n")
            assert line.recv(15) == b"HTTP/1.1 200 OK"


def test_pages_are_served_over_ipv6() -> None:
    """The loopback address of IPv6 serves the same."""
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6 address")
    with watched("[::1]:0") as service:
        assert service.pages.url.startswith("http://[::1]:")
        assert service.ask("/status").status == 200


def test_many_may_ask_at_once(busy: Watched) -> None:
    """More requests at a time than there are threads are all answered in the end."""
    shots = [
        shot["id"] for shot in busy.json("/live.json")["refused"] if shot["outcome"] != "failed"
    ]
    paths = [*PATHS, *(f"/thumb/{shot}.png" for shot in shots)] * 4
    with ThreadPoolExecutor(2 * server.THREADS) as pool:
        found = list(pool.map(lambda path: (path, busy.ask(path).status), paths))

    assert {path for path, status in found if status != 200} <= {
        path for path in paths if path.startswith("/thumb")
    }
    assert {status for _, status in found} <= {200, 503}


def test_slow_clients_are_cut(service: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that take every thread and never finish asking do not keep others from an answer."""
    monkeypatch.setattr(server, "_CONNECTION_S", 0.3)
    where = urlsplit(service.pages.url)
    lines = [
        socket.create_connection((where.hostname, where.port), timeout=30)
        for _ in range(server.THREADS)
    ]
    try:
        for line in lines:
            line.sendall(b"GET /status HTTP/1.1\r\nX-Slow: ")
        assert service.ask("/healthz").status == 200
        assert lines[0].recv(1) == b""
    finally:
        for line in lines:
            line.close()


def test_a_page_that_fails_costs_one_answer(service: Watched) -> None:
    """An error inside a page is answered as such, without its text, and the next is served."""

    def fail() -> ServiceStatus:
        raise RuntimeError("secret")

    whole, service.pages._status = service.pages._status, fail
    answer = service.ask("/status")
    service.pages._status = whole

    assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
    assert service.ask("/status").status == 200


def test_closing_leaves_nothing() -> None:
    """After the end no thread is left, also where a client is still connected; twice is once."""
    before = set(threading.enumerate())
    with watched() as service:
        where = urlsplit(service.pages.url)
        with socket.create_connection((where.hostname, where.port), timeout=30) as line:
            line.sendall(b"GET /status")
            service.ask("/status")
            service.pages.close()
            service.pages.close()
            assert line.recv(1) == b""
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((where.hostname, where.port), timeout=30)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "192.0.2.1:9417"])
def test_an_address_that_cannot_be_had_is_named(service: Watched, address: str) -> None:
    """An address in use, or of another machine, is refused with what to do, and can be left."""
    listen = address.format(port=urlsplit(service.pages.url).port)
    pages = Pages(listen, Monitor(), lambda: status_of(Monitor()), open_raw)

    with pytest.raises(UsageError, match=r"remedy: .*") as refused:
        pages.start()
    assert listen in refused.value.got
    assert pages.url == ""
    pages.close()


def test_status_command_prints_for_people_and_machines(busy: Watched) -> None:
    """`segbatch status` prints the service's status; with --json it is the status itself."""
    busy.changes = {
        "state": "paused", "why": "disk full \x1b[31m", "dropped": 2,
        "camera": {**CAMERA, "state": "failed", "error": "no answer"},
        "last_frame": "[red]\u202e.tif",
    }  # fmt: skip
    told = runs.segbatch("status", "--url", busy.pages.url)
    as_json = runs.segbatch("status", "--url", busy.pages.url, "--json")

    assert told.returncode == as_json.returncode == 0, told.stderr + as_json.stderr
    assert told.stdout.startswith("paused for 25 h 50 min: disk full \\x1b[31m\n")
    for part in ("[red]\\u202e.tif", "failed, 2 frames dropped: no answer", "/data/incoming"):
        assert part in told.stdout
    assert msgspec.json.decode(as_json.stdout, type=ServiceStatus) == busy.status()


def test_status_command_finds_the_service_by_its_settings(busy: Watched, tmp_path: Path) -> None:
    """Without --url the address is that in the settings file."""
    listen = urlsplit(busy.pages.url).netloc
    settings = tmp_path / "segbatch.toml"
    settings.write_text(f'[serve]\nlisten = "{listen}"\n')

    assert runs.segbatch("status", "--config", settings).returncode == 0
    settings.write_text('[serve]\nlisten = ""\n')
    off = runs.segbatch("status", "--config", settings)
    assert (off.returncode, "systemctl status segbatch" in off.stderr) == (2, True)


def test_status_command_says_that_nothing_answers(service: Watched) -> None:
    """A service that is not there, or is another program, is told with the remedy and code 1."""
    url = service.pages.url
    wrong = runs.segbatch("status", "--url", f"{url}page.js")
    service.pages.close()
    gone = runs.segbatch("status", "--url", url)

    assert (wrong.returncode, gone.returncode) == (1, 1)
    assert "Connection refused" in gone.stderr
    assert "answers 404" in wrong.stderr
    assert "remedy: is it running? systemctl status segbatch" in gone.stderr
