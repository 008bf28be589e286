"""``segbatch install-service``: put the systemd unit, its drop-ins and snippets in their places."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import click

import segbatch
from segbatch import settings
from segbatch.errors import UsageError
from segbatch.service.monitor.address import parse_listen
from segbatch.service.record.atomic import make_folder, remove, write_whole
from segbatch.settings import Settings

UNITS = Path("/etc/systemd/system")
# Empty inside the unit (ProtectHome, PrivateTmp): what lies there has to be bound into it.
HOMES = ("/home", "/root", "/run/user")
HIDDEN = (*HOMES, "/tmp", "/var/tmp")  # noqa: S108 - names only, nothing is written there
# The paths that the shipped unit names, and that are put right at the installation.
_PROGRAM, _SETTINGS = "/opt/segbatch/bin/segbatch", "/etc/segbatch/segbatch.toml"
# Systemd's syntax gives these a meaning.
_UNSAFE = re.compile(r"[\x00-\x1f\"'\\:;$]")


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """One file of the installation; ``text`` None: it is to be gone; ``keep``: if it stands."""

    path: Path
    text: str | None
    keep: bool = False


def install_service_command(
    *,
    config: str | None,
    data: Sequence[str],
    gpu: bool | None,
    instance: str | None,
    root: Path,
    dry_run: bool,
) -> None:
    """Write what systemd needs to run ``segbatch serve``, and print the commands that start it.

    Parameters
    ----------
    config
        Settings file; by default ``/etc/segbatch/segbatch.toml``, of an instance
        ``/etc/segbatch/INSTANCE.toml``. Written from the example where none stands.
    data
        Folders that the service may write besides those that the settings name.
    gpu
        Let the service use NVIDIA devices; None: where the driver is loaded.
    instance
        Install ``segbatch@INSTANCE`` instead of ``segbatch``.
    root
        Folder that the paths lie in; for packages.
    dry_run
        Say what would be written, and stop.

    Raises
    ------
    UsageError
        Not Linux, not root, or a path that cannot stand in a unit.
    SettingsError
        The settings file is there and cannot be read.
    StorageError
        A file cannot be written.
    """
    if sys.platform != "linux":
        raise UsageError(
            f"systemd on {sys.platform}", "Linux", "run `segbatch serve --config FILE` by hand"
        )
    here = root.resolve() == Path("/")
    if here and not dry_run and os.geteuid() != 0:
        raise UsageError(
            "this user may not install a service", "root", f"sudo {_program()} install-service"
        )
    if instance is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", instance):
        raise UsageError(
            f"instance {instance!r}",
            "letters, digits, _ . and -, no sign first",
            "such as --instance left",
        )
    if gpu is None:
        gpu = here and Path("/proc/driver/nvidia").exists()
    file = Path(config or f"/etc/segbatch/{instance or 'segbatch'}.toml")
    _require_absolute([("--config", str(file)), *(("--data", folder) for folder in data)])
    standing = _under(root, file)
    current = settings.load(standing if standing.exists() else Path(str(_shipped("segbatch.toml"))))
    # All of it before the first file is written: a path that is refused leaves nothing behind.
    for piece in list(_pieces(file, current, data, gpu=gpu, instance=instance)):
        _put(dataclasses.replace(piece, path=_under(root, piece.path)), dry_run=dry_run)
    if here:
        click.echo("\nNow look at the settings, and run:")
        for command in _commands(f"segbatch@{instance}" if instance else "segbatch", gpu=gpu):
            click.echo(f"  {command}")


def _commands(unit: str, *, gpu: bool) -> Iterator[str]:
    yield "systemd-sysusers segbatch.conf"
    yield "systemd-tmpfiles --create segbatch.conf"
    if gpu:
        yield "modprobe nvidia-uvm"
    yield "systemctl daemon-reload"
    yield f"systemctl enable {unit}"
    yield f"systemctl restart {unit}"


def _pieces(
    file: Path, current: Settings, data: Sequence[str], *, gpu: bool, instance: str | None
) -> Iterator[Piece]:
    """Yield the files of the installation, as they are named on the machine that runs them."""
    yield Piece(file, _text("segbatch.toml"), keep=True)
    yield Piece(Path("/etc/sysusers.d/segbatch.conf"), _text("sysusers.conf"))
    yield Piece(Path("/etc/tmpfiles.d/segbatch.conf"), _text("tmpfiles.conf"))
    if gpu:  # stays when this one goes to the processor: another instance may need it
        yield Piece(Path("/etc/modules-load.d/segbatch.conf"), _text("modules-load.conf"))
    name = "segbatch@.service" if instance else "segbatch.service"
    yield Piece(UNITS / name, unit_text(_program(), file, instance=instance))
    drop_ins = UNITS / f"segbatch{f'@{instance}' if instance else ''}.service.d"
    usb = current.camera.enabled and current.camera.backend != "java"
    yield Piece(drop_ins / "segbatch-settings.conf", access_text(file, current, data))
    yield Piece(drop_ins / "segbatch-gpu.conf", _text("gpu.conf") if gpu else None)
    yield Piece(drop_ins / "segbatch-camera.conf", _text("camera.conf") if usb else None)


def unit_text(program: Path, file: Path, *, instance: str | None = None) -> str:
    """Return the unit for this program and settings file, for an ``instance`` as a template."""
    text = _text("segbatch.service")
    if instance:
        if file.stem != instance:
            raise UsageError(
                f"--config {file} for the instance {instance}",
                f"{file.with_name(f'{instance}.toml')}",
                "all instances share one unit, so that their settings are told by their names",
            )
        text = text.replace("StateDirectory=segbatch", "StateDirectory=segbatch/%i")
        text = text.replace("verdicts\n", "verdicts (%i)\n", 1)
    stated = _word(str(file.with_name("%i.toml")) if instance else str(file))
    stated = stated.replace("%%i.toml", "%i.toml") if instance else stated
    return text.replace(_SETTINGS, stated).replace(_PROGRAM, _word(str(program)))


def access_text(file: Path, current: Settings, data: Sequence[str]) -> str:
    """Return the drop-in that opens to the service what its settings name, and no more."""
    camera = current.camera
    results = [watch.out or watch.path for watch in current.watch]
    results += [camera.out] if camera.out else []
    sources = [watch.path for watch in current.watch if watch.out]
    sources += [camera.micro_manager_dir] if camera.micro_manager_dir else []
    single = [path for path in (current.model, camera.config_file) if path]
    _require_absolute([(str(file), path) for path in (*results, *sources, *single)])
    writable = [Path(path).resolve() for path in (*results, *data)]
    # Editors replace files, so the folder that a file lies in is bound, not the file.
    readable = [*map(Path, sources), *(Path(path).parent for path in (str(file), *single))]
    readable += [Path(sys.prefix), Path(sys.base_prefix), Path(segbatch.__file__).parents[1]]
    readable = [path.resolve() for path in readable]

    lines = [f"# What {file} asks for. Written anew by `segbatch install-service`.", "[Service]"]
    bound = [path for path in (*writable, *readable) if _inside(path, HIDDEN)]
    if any(_inside(path, HOMES) for path in bound):
        lines.append("ProtectHome=tmpfs")
    for path in _outermost(writable):
        # A folder that is not there now must not keep the others from being watched.
        key = "BindPaths" if path in bound else "ReadWritePaths"
        lines.append(f"{key}={_word(f'-{path}')}")
    shown = _outermost(path for path in readable if path in bound)
    lines += [f"BindReadOnlyPaths={_word(f'-{path}')}" for path in shown]
    if not _loopback(current.serve.listen):
        lines.append("IPAddressAllow=any")
    # Whether results can be written shows only from inside: doctor looks at each start.
    looked_at = [_word(str(path)) for path in _outermost(writable)]
    lines += [
        "ExecStartPre=",
        " ".join([f"ExecStartPre=-{_word(str(_program()))} doctor", *looked_at]),
    ]
    return "\n".join(lines) + "\n"


def _put(piece: Piece, *, dry_run: bool) -> None:
    """Make the file be as the piece says, and say what was done."""
    path = piece.path
    stands = path.exists()
    if piece.text is None:
        if stands:
            _tell("remove", path, dry_run=dry_run)
            if not dry_run:
                remove(path)
    elif stands and piece.keep:
        click.echo(f"kept     {path} (settings are never overwritten)")
    elif stands and path.read_text(encoding="utf-8") == piece.text:
        click.echo(f"same     {path}")
    else:
        _tell("write", path, dry_run=dry_run)
        if not dry_run:
            make_folder(path.parent)
            write_whole(path, piece.text.encode())
            path.chmod(0o644)  # whatever root's umask: the service reads its settings


def _tell(verb: str, path: Path, *, dry_run: bool) -> None:
    done = {"write": "wrote", "remove": "removed"}[verb]
    click.echo(f"would {verb} {path}" if dry_run else f"{done:8} {path}")


def _shipped(name: str) -> Path:
    return Path(str(files("segbatch.service.units").joinpath(name)))


def _text(name: str) -> str:
    return _shipped(name).read_text(encoding="utf-8")


def _program() -> Path:
    """Return the command that runs now, by an absolute path."""
    for candidate in (Path(sys.argv[0]), Path(sys.executable).with_name("segbatch")):
        if candidate.name == "segbatch" and candidate.is_file():
            return candidate.absolute()
    raise UsageError(
        f"no segbatch command beside {sys.executable}",
        "an installed segbatch",
        "install it, best into a virtual environment of its own: /opt/segbatch",
    )


def _under(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _require_absolute(paths: Iterable[tuple[str, str]]) -> None:
    for name, path in paths:
        if not Path(path).is_absolute():
            raise UsageError(
                f"{name}: {path!r}", "an absolute path", "a service has no folder of its own"
            )


def _word(text: str) -> str:
    """Return ``text`` as one word of a unit file."""
    if _UNSAFE.search(text):
        raise UsageError(
            f"path {text.removeprefix('-')!r}",
            "none of the characters \" ' \\ : ; $ in it",
            "rename the folder, or reach it by a link or a mount of another name",
        )
    escaped = text.replace("%", "%%")
    return f'"{escaped}"' if " " in escaped else escaped


def _inside(path: Path, folders: Iterable[str]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that lie in none of the others."""
    once = sorted(set(paths))
    return [path for path in once if not any(path != one and one in path.parents for one in once)]


def _loopback(listen: str) -> bool:
    if not listen:
        return True
    host, _ = parse_listen(listen)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
