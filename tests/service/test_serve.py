"""The service as a whole: real processes, real files that arrive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.service.runs import hidden_files, make_run, outcomes, raw_frames, records, segbatch
from tests.service.serving import Service, run_file

FRAMES = 14


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of single frames, a stack and a broken file."""
    folder = tmp_path_factory.mktemp("material") / "run"
    make_run(folder, FRAMES)
    for path in folder.glob("*_truth.tif"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def expected(material: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[object, object]:
    """Return what `segbatch process` says of the same frames."""
    folder = tmp_path_factory.mktemp("expected") / "run"
    shutil.copytree(material, folder)
    segbatch("process", folder)
    return dict(outcomes(folder))


def deliver(material: Path, folder: Path, pause_s: float = 0.0) -> None:
    """Copy raw files into a folder one by one, as an acquisition program would write them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(material.iterdir()):
        shutil.copy(path, folder / path.name)
        time.sleep(pause_s)


def test_frames_that_arrive_end_as_process_would_end_them(
    tmp_path: Path, material: Path, expected: dict[object, object]
) -> None:
    """Masks, verdicts and run files are those of `segbatch process` on the finished folder."""
    with Service([tmp_path / "in"], tmp_path / "state") as service:
        (tmp_path / "in").mkdir()
        service.ready()
        deliver(material, tmp_path / "in" / "run42", pause_s=0.05)
        report = service.until(lambda: run_file(tmp_path / "in" / "run42"))
        told = service.status()
        code = service.end()

    assert code == 143
    assert dict(outcomes(tmp_path / "in" / "run42")) == expected
    assert report["counts"]["frames"] == len(expected)
    assert sum(told["frames"].values()) == len(expected)
    assert told["backlog"] == 0
    assert hidden_files(tmp_path / "in" / "run42") == []


def test_kills_at_any_moment_cost_no_frame_and_repeat_none(
    tmp_path: Path, material: Path, expected: dict[object, object]
) -> None:
    """Killed a dozen times while frames arrive, it ends with the outcomes of a calm run."""
    root, rng = tmp_path / "in", np.random.default_rng(1)
    files = sorted(material.iterdir())
    (root / "run").mkdir(parents=True)
    for _ in range(12):
        with Service([root], tmp_path / "state") as service:
            service.ready()
            for path in files[:2]:
                shutil.copy(path, root / "run" / path.name)
            del files[:2]
            time.sleep(rng.uniform(0.0, 1.2))
            service.process.kill()
    with Service([root], tmp_path / "state") as service:
        deliver(material, root / "run") if files else None
        service.until(lambda: run_file(root / "run"))
        service.until(lambda: dict(outcomes(root / "run")) == expected)

    names = {name for name, _ in outcomes(root / "run")}
    assert names == set(raw_frames(root / "run"))


def test_a_second_start_finds_nothing_to_do(tmp_path: Path, material: Path) -> None:
    """A run that is over is not looked at again by the next start, not even read."""
    root = tmp_path / "in"
    deliver(material, root / "run")
    with Service([root], tmp_path / "state") as service:
        service.until(lambda: run_file(root / "run"))
        service.end()
    written = {path: path.stat().st_mtime_ns for path in (root / "run").iterdir()}
    with Service([root], tmp_path / "state") as service:
        service.ready()
        deliver(material, root / "other")
        service.until(lambda: run_file(root / "other"))
        service.end()
        touched = [line for line in service.log if "/run/" in str(line.get("file"))]

    assert written == {path: path.stat().st_mtime_ns for path in (root / "run").iterdir()}
    assert touched == []


def test_a_frame_that_was_written_anew_gets_a_new_outcome(tmp_path: Path, material: Path) -> None:
    """Other pixels under the same name are judged and segmented again, in a run that was over."""
    root = tmp_path / "in"
    deliver(material, root / "run")
    raw = next(iter(sorted((root / "run").glob("img_*.tif"))))
    with Service([root], tmp_path / "state") as service:
        service.until(lambda: run_file(root / "run"))
        tifffile.imwrite(raw, np.full((192, 256), 1023, np.uint16))
        log = raw.with_name(f"{raw.stem}_qc.json")
        service.until(lambda: log.is_file() and b"overexposed" in log.read_bytes())
        service.until(lambda: len(service.said("run is over")) == 2)

    assert outcomes(root / "run")[raw.name, 0].reasons == ("overexposed",)
    assert len(outcomes(root / "run")) == sum(raw_frames(root / "run").values())


def test_results_of_other_settings_stay(tmp_path: Path, material: Path) -> None:
    """The service finishes what is missing and leaves to `process` what other settings made."""
    root = tmp_path / "in"
    deliver(material, root / "run")
    first = sorted((root / "run").glob("img_*.tif"))[0]
    segbatch("process", first, "--set", "quality.enabled=false")
    log = first.with_name(f"{first.stem}_qc.json")
    before = log.read_bytes()
    (root / "run" / "segbatch_run.json").unlink()
    with Service([root], tmp_path / "state") as service:
        service.until(lambda: run_file(root / "run"))

    assert log.read_bytes() == before
    assert len(outcomes(root / "run")) == sum(raw_frames(root / "run").values())


def test_a_watched_folder_is_refused_to_others(tmp_path: Path, material: Path) -> None:
    """`segbatch process` on a folder that is served ends at once and names the service."""
    root = tmp_path / "in"
    deliver(material, root / "run")
    with Service([root], tmp_path / "state") as service:
        service.ready()
        refused = segbatch("process", root / "run")

    assert refused.returncode == 4
    assert "serve" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_missing_folder_does_not_keep_another_waiting(tmp_path: Path, material: Path) -> None:
    """A tree that is not there is told of, and worked on when it comes; the other goes on."""
    deliver(material, tmp_path / "there" / "run")
    with Service([tmp_path / "missing", tmp_path / "there"], tmp_path / "state") as service:
        service.until(lambda: run_file(tmp_path / "there" / "run"))
        told = {folder["path"]: folder["error"] for folder in service.status()["folders"]}
        deliver(material, tmp_path / "missing" / "run")
        service.until(lambda: run_file(tmp_path / "missing" / "run"))

    assert "is not there" in told[str(tmp_path / "missing")]
    assert told[str(tmp_path / "there")] is None


def test_little_room_pauses_and_room_resumes(tmp_path: Path, material: Path) -> None:
    """With less room than is to be left nothing is begun; with enough again, it goes on."""
    root, config = tmp_path / "in", tmp_path / "segbatch.toml"
    config.write_text("[serve]\nmin_free_gib = 900000\n")
    deliver(material, root / "run")
    quick = ("--config", str(config))
    with Service(
        [root], tmp_path / "state", options=quick, settings={"serve.min_free_gib": None}
    ) as service:
        service.until(lambda: service.status()["state"] == "paused")
        written = [path.name for path in (root / "run").glob("*_qc.json*")]
        why = service.status()["why"]
        config.write_text("[serve]\nmin_free_gib = 0\n")
        service.process.send_signal(signal.SIGHUP)
        service.until(lambda: run_file(root / "run"))
        paused = service.said("folder paused")
        told = service.status()["state"]

    assert written == []
    assert "GiB left" in why
    assert told == "running"
    assert len(paused) == 1


def test_reload_takes_good_settings_and_keeps_the_old_ones_for_bad(
    tmp_path: Path, material: Path
) -> None:
    """SIGHUP with a broken file changes nothing and says why; with a sound one it is obeyed."""
    config = tmp_path / "segbatch.toml"
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    config.write_text(f'[[watch]]\npath = "{first}"\n')
    first.mkdir()
    with Service([], tmp_path / "state", config=config) as service:
        service.ready()
        config.write_text(f'[[watch]]\npth = "{first}"\n')
        service.process.send_signal(signal.SIGHUP)
        refused = service.until(lambda: service.said("settings not taken; the old ones stay"))
        deliver(material, first / "run")
        service.until(lambda: run_file(first / "run"))
        config.write_text(f'[[watch]]\npath = "{first}"\n[[watch]]\npath = "{second}"\n')
        service.process.send_signal(signal.SIGHUP)
        service.until(lambda: service.said("settings read again"))
        deliver(material, second / "run")
        service.until(lambda: run_file(second / "run"))

    assert "did you mean watch.path?" in refused[0]["why"]


@pytest.mark.parametrize(
    ("first", "listen", "last", "named"),
    [
        ("", "localhost", "", "serve.listen"),
        ("", "127.0.0.1:0", '[camera]\nenabled = true\nout = ""', "camera.out"),
        ('model = "/nowhere/model.json"\n', "127.0.0.1:0", "", "/nowhere/model.json"),
    ],
)
def test_no_setting_that_is_wrong_ends_a_service_that_runs(
    tmp_path: Path, material: Path, first: str, listen: str, last: str, named: str
) -> None:
    """A value that cannot be used is refused on reload before anything of the old is let go."""
    config, root = tmp_path / "segbatch.toml", tmp_path / "in"
    root.mkdir()

    def text(first: str, listen: str, last: str) -> str:
        return f'{first}[[watch]]\npath = "{root}"\n[serve]\nlisten = "{listen}"\n{last}'

    config.write_text(text("", "127.0.0.1:0", ""))
    with Service([], tmp_path / "state", config=config, listen=None) as service:
        service.ready()
        config.write_text(text(first, listen, last))
        service.process.send_signal(signal.SIGHUP)
        refused = service.until(lambda: service.said("settings not taken; the old ones stay"))
        deliver(material, root / "run")
        service.until(lambda: run_file(root / "run"))
        assert service.status()["state"] == "running"
        assert service.end() == 143
    assert named in refused[0]["why"]


def test_a_frame_of_two_deaths_fails_and_the_rest_goes_on(tmp_path: Path, material: Path) -> None:
    """A frame during which the process was aborted twice is recorded as failed, and no other."""
    root, state = tmp_path / "in", tmp_path / "state"
    deliver(material, root / "run")
    rng = np.random.default_rng(1)
    large = rng.integers(90, 110, (9000, 9000)).astype(np.uint16)  # seconds of work
    tifffile.imwrite(root / "run" / "a_large.tif", large)

    def is_alone_under_way() -> bool:
        marks = list(state.glob("under-way.json"))
        names = json.loads(marks[0].read_bytes() or b"[]") if marks else []
        return any("a_large.tif" in name for name in names)

    for _ in range(2):
        with Service([root], state) as service:
            service.ready().until(is_alone_under_way)
            service.end(signal.SIGABRT)
    with Service([root], state) as service:
        service.until(lambda: run_file(root / "run"))
    found = {record["frame"]["file"]: record for record in records(root / "run")}

    assert found["a_large.tif"]["outcome"] == "failed"
    assert found["a_large.tif"]["reasons"] == ["engine-error"]
    assert "died 2 times" in found["a_large.tif"]["error"]
    assert [n for n, r in found.items() if "engine-error" in r["reasons"]] == ["a_large.tif"]


def test_stopping_ends_what_is_under_way_and_leaves_the_rest(
    tmp_path: Path, material: Path, expected: dict[object, object]
) -> None:
    """SIGTERM in the middle of work leaves whole outcomes only; the next start does the rest."""
    root = tmp_path / "in"
    deliver(material, root / "run")
    with Service([root], tmp_path / "state") as service:
        service.until(lambda: list((root / "run").glob("*_qc.json")))
        code = service.end()
        drained = service.said("drained")
    hidden = [name for name in hidden_files(root / "run") if "journal" not in name]
    with Service([root], tmp_path / "state") as service:
        service.until(lambda: run_file(root / "run"))

    assert code == 143
    assert drained
    assert [name for name in hidden if "spool" not in name] == []
    assert dict(outcomes(root / "run")) == expected


def test_results_go_to_a_mirrored_tree_and_runs_are_where_the_depth_says(
    tmp_path: Path, material: Path, expected: dict[object, object]
) -> None:
    """With `out` nothing is written beside the frames; runs lie `run_depth` folders down."""
    root, out, config = tmp_path / "in", tmp_path / "out", tmp_path / "segbatch.toml"
    config.write_text(f'[[watch]]\npath = "{root}"\nout = "{out}"\nrun_depth = 2\n')
    deliver(material, root / "2026-11-21" / "run")
    shutil.copy(next(material.glob("img_*.tif")), root / "single.tif")
    with Service([], tmp_path / "state", config=config) as service:
        service.until(lambda: run_file(out / "2026-11-21" / "run"))
        service.until(lambda: run_file(out))
        service.end()
    beside = [path.name for path in root.rglob("*") if "_qc" in path.name or "_mask" in path.name]

    assert beside == []
    assert dict(outcomes(out / "2026-11-21" / "run")) == expected
    assert [record["frame"]["file"] for record in records(out)] == ["single.tif"]


def test_wrong_use_is_refused_before_anything_is_watched(tmp_path: Path) -> None:
    """Folders that cannot be served and wrong settings end with code 2 and a remedy."""
    inner = tmp_path / "in" / "inner"
    inner.mkdir(parents=True)
    environment = {**os.environ, "STATE_DIRECTORY": str(tmp_path / "state")}
    none = segbatch("serve", env=environment)
    nested = segbatch("serve", inner, inner.parent, env=environment)
    address = segbatch("serve", inner, "--listen", "nowhere", env=environment)
    configs = []
    for number, text in enumerate(
        (
            '[[watch]]\npath = ""\n',
            '[[watch]]\npath = "/"\n',
            '[watch]\npath = "/data"\n',
            "[[watch]\n",
            '[server]\nlisten = ""\n',
            '[[watch]]\npath = "/a"\nout = "/o"\n[[watch]]\npath = "/b"\nout = "/o"\n',
            '[[watch]]\npath = "/a"\nout = "/b/o"\n[[watch]]\npath = "/b"\n',
        )
    ):
        configs.append(tmp_path / f"{number}.toml")
        configs[-1].write_text(text)
    wrong = [segbatch("serve", "--config", config, env=environment) for config in configs]

    assert "did you mean serve?" in wrong[4].stderr
    for refused in (none, nested, address, *wrong):
        assert refused.returncode == 2, refused.stderr
        assert "remedy" in refused.stderr
        assert "Traceback" not in refused.stderr
