"""Networks without a manifest of ours: taken in once by the learning room, and kept.

The learning room runs in a process of its own, which torch and a hostile file may end, with a
limit on its time and memory.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from segbatch import __version__
from segbatch.errors import ModelError, StorageError, UsageError
from segbatch.infer.engine.adopted import BEING_MADE, hold, tidy
from segbatch.infer.engine.cache import cache_folder
from segbatch.infer.engine.digest import sha256_of
from segbatch.infer.engine.manifest import load_model
from segbatch.log import get_logger

TIMEOUT_S = 900.0
MEMORY_GIB = 16.0
DESCRIPTIONS = ("bioimageio.yaml", "rdf.yaml", "bioimageio.yml", "rdf.yml")
# By which a refusal guesses; nothing else does.
ENDINGS = (".onnx", ".pt", ".pth", ".pt2", ".ckpt", ".zip")
WANTED = "the folder of a bioimage.io package, or one file"
NEEDED = ("onnx", "onnxscript", "torch", "yaml")
log = get_logger(__name__)


def adopt(source: Path, arch: str = "") -> Path:
    """Return the manifest of a network from elsewhere, taken in now or on an earlier day.

    Kept in the user's cache folder under the hash of ``source`` and ``arch``, the architecture of
    weights, and below that under the hashes of all files that were read: the same description
    may lie beside other weights elsewhere. What is in use is never removed (``adopted``).

    Raises
    ------
    ModelError
        It was refused, or took too long.
    UsageError
        It was not taken in yet, and the learn extra is not installed.
    StorageError
        The cache folder has no room, or cannot be written.
    """
    main = main_file(source)
    folder = cache_folder() / "models" / _key(source, main, arch)
    manifest_file = _known(folder, main)
    if manifest_file is None:
        manifest_file = _take_in(source, folder, arch)
    manifest = load_model(manifest_file).manifest
    if manifest.source is not None and manifest.source.assumed:
        log.warning(
            "assumed what the model's file does not say",
            model=str(source),
            assumed=manifest.source.assumed,
            remedy="python -m segbatch.learn.intake --help",
        )
    return manifest_file


def main_file(source: Path) -> Path:
    """Return the file whose hash names the source: itself, or its folder's description.

    Raises
    ------
    ModelError
        It is no file, and no folder of a package.
    """
    if source.is_file():
        return source
    for name in DESCRIPTIONS:
        if (source / name).is_file():
            return source / name
    if not source.is_dir():
        raise ModelError(f"model {source}: neither a file nor a folder", WANTED, "check --model")
    files = sorted(each for each in source.iterdir() if each.suffix.lower() in ENDINGS)
    raise ModelError(
        f"model {source}: a folder without {' or '.join(DESCRIPTIONS[:2])}",
        WANTED,
        f"name the network's file: {files[0]}" if files else "check --model",
    )


def _key(source: Path, main: Path, arch: str) -> str:
    """Return what a source is before it was read; a model is called after its file or folder."""
    return _hash([__version__, source.absolute().name, main.name, _sha256(main), arch])


def _hash(told: list[str]) -> str:
    return hashlib.sha256("\0".join(told).encode(errors="surrogateescape")).hexdigest()[:32]


def _sha256(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        raise ModelError(f"model {file}: {error.strerror}", "a readable file") from error


def _known(folder: Path, main: Path) -> Path | None:
    """Return the manifest that was kept, None where there is none of the same files."""
    for manifest_file in sorted(folder.glob("[!.]*/*.json")):
        try:
            # Held first: what was whole when it was looked at could be gone by then.
            if not hold(manifest_file):
                continue
            manifest = load_model(manifest_file).manifest
            if manifest.source is not None and _unchanged(manifest.source.files, main):
                return manifest_file
        except ModelError:
            continue
    return None


def _unchanged(files: dict[str, str], main: Path) -> bool:
    hashes = list(files.values())
    others = zip(list(files)[1:], hashes[1:], strict=True)
    return hashes[0] == _sha256(main) and all(
        _sha256(main.parent / name) == wanted for name, wanted in others
    )


def _take_in(source: Path, folder: Path, arch: str) -> Path:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"model {source} without a manifest of segbatch, and {missing[0]} is not installed",
            "the learn extra, which reads such networks",
            "pip install 'segbatch[learn]', or name a manifest NAME.json",
        )
    log.info("model is taken in", model=str(source))
    began = time.monotonic()
    made = _room(folder)
    try:
        manifest_file = _publish(_run(source, made, arch), folder)
    except OSError as error:
        raise _unwritten(str(error.strerror)) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    hold(manifest_file)
    tidy(manifest_file)
    manifest = load_model(manifest_file).manifest
    log.info(
        "model taken in",
        model=str(source),
        kind=manifest.source.kind if manifest.source else "",
        kept=str(manifest_file),
        stride=manifest.stride,
        halo_px=manifest.halo_px,
        halo_tolerance=manifest.halo_tolerance,
        seconds=round(time.monotonic() - began, 1),
    )
    return manifest_file


def _publish(made: Path, folder: Path) -> Path:
    """Move a model to where it is kept, or return the same one of a process that was faster."""
    source = load_model(made).manifest.source
    read = [each for pair in source.files.items() for each in pair] if source else []
    kept = folder / _hash(read) / made.name
    try:
        made.parent.rename(kept.parent)
    except OSError:
        try:
            load_model(kept)
        except ModelError:
            # Damaged. It stays, because another process may be putting it right: what is
            # removed between a look and the removal could be whole by then.
            kept = folder / f"{kept.parent.name}{made.parent.parent.name}" / made.name
            made.parent.rename(kept.parent)
    return kept


def _room(wanted: Path) -> Path:
    """Make a folder to work in below the one to keep the model in."""
    try:
        wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Path(tempfile.mkdtemp(prefix=BEING_MADE, dir=wanted))
    except OSError as error:
        raise _unwritten(str(error.strerror)) from error


def _unwritten(why: str) -> StorageError:
    return StorageError(
        f"cache folder {cache_folder()} cannot be written: {why}",
        "a cache folder with room for the model",
        "make room there, set XDG_CACHE_HOME to another folder, or write a model beside your "
        "data: python -m segbatch.learn.intake SOURCE FOLDER",
    )


def _run(source: Path, folder: Path, arch: str) -> Path:
    """Run the learning room's command and return the manifest that it wrote."""
    model, temporary = folder / "model", folder / "tmp"
    temporary.mkdir()
    # Neither modules of the current folder, nor temporary files that outlive an ended process.
    command = [sys.executable, "-P", "-m", "segbatch.learn.intake"]
    command += [str(source.absolute()), str(model)]
    command += ["--memory-gib", str(MEMORY_GIB), *(["--arch", arch] if arch else [])]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={
                # Its threads would wait by spinning, beside whatever else computes here.
                "OMP_WAIT_POLICY": "PASSIVE",
                **os.environ,
                **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
            },
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"model {source}: not read within {TIMEOUT_S:.0f} s",
            "a network that is read sooner",
            "export it as ONNX where it was trained",
        ) from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ModelError(
            f"model {source}: the process that read it ended: {said[0][:300]}",
            "a network that can be read",
            "export it as ONNX where it was trained, and give that file",
        ) from None
    if done.returncode == 0:
        return Path(answer["manifest"])
    if done.returncode == StorageError.exit_code:
        raise _unwritten(str(answer["got"]).rpartition(": ")[2])
    kind = UsageError if done.returncode == UsageError.exit_code else ModelError
    raise kind(answer["got"], answer["wanted"], answer["remedy"])
