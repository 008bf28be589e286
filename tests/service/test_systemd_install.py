"""What `segbatch install-service` writes, looked at by systemd's own tools."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from segbatch import settings
from tests.house.places import COMMAND, ROOT

SHIPPED = ROOT / "segbatch" / "service" / "units"
EXAMPLE = SHIPPED / "segbatch.toml"
COMMENTED = re.compile(r"^#(?=[a-z_]+ = )", re.MULTILINE)
# Keys whose default is to leave something as it is show an example instead.
NO_DEFAULT = {
    "threshold", "bit_depth", "watch.path", "camera.exposure_ms", "camera.gain_db",
    "camera.binning", "camera.hot_pixel_threshold",
}  # fmt: skip

pytestmark = pytest.mark.skipif(os.name == "nt", reason="systemd needs Linux")
needs_analyze = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd is not installed (Debian package systemd)"
)


def install(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run install-service into ``root``."""
    return subprocess.run(
        [COMMAND, "install-service", "--root", root, *arguments],
        capture_output=True,
        text=True,
        check=check,
    )


def units(root: Path) -> Path:
    """Return the folder of the units below ``root``."""
    return root / "etc/systemd/system"


def access(root: Path, unit: str = "segbatch.service") -> list[str]:
    """Return the lines of the drop-in that opens folders."""
    text = (units(root) / f"{unit}.d" / "segbatch-settings.conf").read_text()
    return text.splitlines()[2:]


def test_example_has_every_key(tmp_path: Path) -> None:
    """The example settings hold every setting, at its default where it has one."""
    whole = tmp_path / "whole.toml"
    whole.write_text(COMMENTED.sub("", EXAMPLE.read_text()))
    loaded, default = settings.load(whole), settings.load()
    read = tomllib.loads(whole.read_text())

    for key in settings.known_keys():
        section, _, name = key.rpartition(".")
        table = read[section] if section else read
        assert name in (table[0] if section == "watch" else table), key
        if key not in NO_DEFAULT and section != "watch":
            stated, usual = (getattr(one, section) if section else one for one in (loaded, default))
            assert getattr(stated, name) == getattr(usual, name), key


def test_example_explains_every_key() -> None:
    """In the example settings, a sentence stands above every key."""
    lines = EXAMPLE.read_text().splitlines()
    bare = [
        line
        for above, line in itertools.pairwise(lines)
        if re.match(r"#?[a-z_]+ = ", line)
        and not above.startswith("# ")
        and not re.match(r"#(save_probabilities|out) ", above)  # explained in pairs
        and "blur_third" not in line
    ]

    assert bare == []


def test_everything_ships() -> None:
    """Every file that install-service writes is part of the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    names = [file.name for file in SHIPPED.iterdir() if file.suffix not in (".py", "")]

    assert [name for name in names if not any(fnmatch(name, one) for one in patterns)] == []


@needs_analyze
@pytest.mark.parametrize(
    "arguments",
    [
        ["--cpu", "--data", "/home/ann/two words", "--data", "/data/100%"],
        ["--gpu", "--config", "/etc/segbatch/lab 100%.toml"],
        ["--cpu", "--instance", "left"],
    ],
)
def test_units_verify(tmp_path: Path, arguments: list[str]) -> None:
    """systemd-analyze verify has nothing to say of any unit that is written."""
    install(tmp_path, *arguments)
    unit = "segbatch@left.service" if "left" in arguments else "segbatch.service"
    if "left" in arguments:  # verify wants a template's instance by a file of its own
        (units(tmp_path) / unit).symlink_to("segbatch@.service")
    answer = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", units(tmp_path) / unit],
        capture_output=True,
        text=True,
        check=True,
    )

    assert answer.stdout + answer.stderr == ""


@needs_analyze
@pytest.mark.parametrize(
    ("arguments", "camera", "limit"),
    [(["--cpu"], False, 10), (["--gpu"], False, 12), (["--gpu"], True, 14)],
)
def test_exposure(tmp_path: Path, arguments: list[str], camera: bool, limit: int) -> None:
    """Systemd rates the exposure at most 1.0 without and 1.2 with a GPU, 1.4 with a USB camera."""
    file = tmp_path / "etc/segbatch/segbatch.toml"
    file.parent.mkdir(parents=True)
    enabled = 'enabled = true\nbackend = "python"\nout = "/srv/camera"' if camera else ""
    file.write_text(f'[[watch]]\npath = "/srv/segbatch"\n[camera]\n{enabled}\n')
    install(tmp_path, *arguments)
    unit = units(tmp_path) / "segbatch.service"
    parts = [unit, *sorted(Path(f"{unit}.d").iterdir())]
    assert len(parts) == 2 + ("--gpu" in arguments) + camera
    whole = tmp_path / "segbatch.service"
    whole.write_text("\n".join(part.read_text() for part in parts))
    answer = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={limit}", whole],
        env=os.environ | {"SYSTEMD_PAGER": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Overall exposure level" in answer.stdout


def test_second_run_keeps_edited_settings(tmp_path: Path) -> None:
    """Run again, it keeps the settings as they were edited, and writes units anew."""
    install(tmp_path)
    file = tmp_path / "etc/segbatch/segbatch.toml"
    file.write_text('[[watch]]\npath = "/data"\n')
    unit = units(tmp_path) / "segbatch.service"
    shipped = unit.read_text()
    unit.write_text("[Service]\n")
    answer = install(tmp_path)

    assert file.read_text() == '[[watch]]\npath = "/data"\n'
    assert f"kept     {file}" in answer.stdout
    assert unit.read_text() == shipped
    assert "ReadWritePaths=-/data" in access(tmp_path)
    assert "wrote" not in install(tmp_path).stdout


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    """A dry run names the files, and writes none."""
    answer = install(tmp_path, "--dry-run")

    assert f"would write {units(tmp_path) / 'segbatch.service'}" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_unit_runs_this_program(tmp_path: Path) -> None:
    """The unit starts the segbatch that wrote it, with the settings file that was named."""
    install(tmp_path, "--config", "/etc/segbatch/lab 100%.toml")
    text = (units(tmp_path) / "segbatch.service").read_text()

    assert f'ExecStart={COMMAND} serve --config "/etc/segbatch/lab 100%%.toml"\n' in text
    assert (tmp_path / "etc/segbatch/lab 100%.toml").exists()
    assert "/opt/segbatch" not in text


def test_instances_have_settings_and_state_of_their_own(tmp_path: Path) -> None:
    """A template gives every instance its settings file, state folder and open folders."""
    install(tmp_path, "--instance", "left", "--data", "/data/left")
    text = (units(tmp_path) / "segbatch@.service").read_text()

    assert "serve --config /etc/segbatch/%i.toml\n" in text
    assert "StateDirectory=segbatch/%i\n" in text
    assert (tmp_path / "etc/segbatch/left.toml").exists()
    assert "ReadWritePaths=-/data/left" in access(tmp_path, "segbatch@left.service")


def test_only_what_the_settings_name_is_opened(tmp_path: Path) -> None:
    """Result folders can be written, sources only read; what lies in homes is bound, no more."""
    file = tmp_path / "etc/segbatch/segbatch.toml"
    file.parent.mkdir(parents=True)
    file.write_text(
        'model = "/home/ann/nets/beads.json"\n'
        '[[watch]]\npath = "/mnt/raw"\nout = "/data/two words"\n'
        '[[watch]]\npath = "/home/ann/drop"\n'
        '[[watch]]\npath = "/data/run 100%"\nout = "/home/ann/drop/results"\n'
    )
    (tmp_path / "here").mkdir()
    with contextlib.chdir(tmp_path / "here"):
        install(tmp_path, "--data", "/data/more")
    lines = access(tmp_path)

    assert lines[0] == "ProtectHome=tmpfs"
    assert {line for line in lines if line.startswith(("ReadWritePaths", "BindPaths"))} == {
        'ReadWritePaths="-/data/two words"',
        "ReadWritePaths=-/data/more",
        "BindPaths=-/home/ann/drop",
    }
    homes = [line for line in lines if line.startswith("BindReadOnlyPaths=-/home/ann")]
    assert homes == ["BindReadOnlyPaths=-/home/ann/nets"]
    assert not [line for line in lines if str(tmp_path) in line]
    assert "IPAddressAllow=any" not in lines


def test_pages_for_the_network_are_let_through(tmp_path: Path) -> None:
    """Pages that listen beyond the loopback can be reached from there."""
    file = tmp_path / "etc/segbatch/segbatch.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[serve]\nlisten = "0.0.0.0:9417"\n')
    install(tmp_path)

    assert "IPAddressAllow=any" in access(tmp_path)


def test_gpu_goes_when_the_processor_is_asked_for(tmp_path: Path) -> None:
    """--gpu opens NVIDIA devices, --cpu closes them again."""
    drop_in = units(tmp_path) / "segbatch.service.d/segbatch-gpu.conf"
    install(tmp_path, "--gpu")
    assert "DeviceAllow=char-nvidia* rw" in drop_in.read_text()
    assert (tmp_path / "etc/modules-load.d/segbatch.conf").exists()

    answer = install(tmp_path, "--cpu")
    assert not drop_in.exists()
    assert f"removed  {drop_in}" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", 'a"b'], "an absolute path"),
        (["--data", '/a"b'], "rename the folder"),
        (["--config", "lab.toml"], "an absolute path"),
        (["--instance", "a/b"], "letters, digits"),
        (["--instance", "left", "--config", "/etc/segbatch/right.toml"], "left.toml"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, arguments: list[str], told: str) -> None:
    """Paths and names that no unit can hold are refused before anything is written."""
    answer = install(tmp_path, *arguments, check=False)

    assert answer.returncode == 2
    assert told in answer.stderr
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_root_installs() -> None:
    """Without root's rights, installing is refused, with the command to use instead."""
    as_nobody = [] if os.geteuid() else ["unshare", "--user"]
    answer = subprocess.run(
        [*as_nobody, COMMAND, "install-service"], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 2
    assert f"sudo {COMMAND} install-service" in answer.stderr
