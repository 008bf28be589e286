"""Networks without a manifest of ours: taken in once by the learning room, and kept.

The learning room runs in a process of its own, which torch and a hostile file may end
(``reading``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from segbatch import __version__
from segbatch.errors import EngineError, ModelError, UsageError
from segbatch.infer.engine.cache import cache_folder
from segbatch.infer.engine.digest import sha256_of
from segbatch.infer.engine.made.artifact import SUFFIX, read_manifest
from segbatch.infer.engine.manifest import load_model, named_an_engine
from segbatch.infer.engine.network.adopted import (
    BEING_MADE,
    hold,
    mark_being_made,
    sweep,
    tidy,
    unwritten,
)
from segbatch.infer.engine.network.reading import read_apart
from segbatch.log import get_logger

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
        It is an engine that was made of a model, was refused, or took too long.
    UsageError
        It was not taken in yet, and the learn extra is not installed.
    StorageError
        The cache folder has no room, or cannot be written.
    """
    refuse_engine(source)
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


def known(source: Path, arch: str = "") -> Path | None:
    """Return the manifest of a network that was taken in on an earlier day; None without one.

    Raises
    ------
    ModelError
        ``source`` is no file and no folder of a package, or cannot be read.
    """
    main = main_file(source)
    return _known(cache_folder() / "models" / _key(source, main, arch), main)


def refuse_engine(source: Path) -> None:
    """Raise ModelError where a file is an engine, or the manifest of one.

    What stands in the manifests beside it tells: an engine may be an ONNX file like any other.
    """
    if source.name.endswith(SUFFIX):
        raise named_an_engine(source, source)
    for manifest_file in sorted(source.parent.glob(f"*{SUFFIX}")):
        try:
            engine = read_manifest(manifest_file)
        except EngineError:
            continue
        # A precision that passed the gate is the network itself.
        if engine.file == source.name and engine.sha256 != engine.source_sha256:
            raise named_an_engine(source, manifest_file)


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
    log.info("model is taken in; large networks take minutes", model=str(source))
    began = time.monotonic()
    sweep()
    with ExitStack() as ends:
        try:
            made = _room(folder, ends)
            manifest_file = _publish(read_apart(source, made, arch), folder)
        except OSError as error:
            raise unwritten(str(error.strerror)) from error
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


def _room(wanted: Path, ends: ExitStack) -> Path:
    """Make a folder to work in below the one to keep the model in; it goes with ``ends``."""
    wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = Path(tempfile.mkdtemp(prefix=BEING_MADE, dir=wanted))
    ends.callback(shutil.rmtree, made, ignore_errors=True)
    mark_being_made(made, ends)
    return made


def _publish(made: Path, folder: Path) -> Path:
    """Move a model to where it is kept, or return the same one of a process that was faster."""
    source = load_model(made).manifest.source
    read = [each for pair in source.files.items() for each in pair] if source else []
    kept = folder / _hash(read) / made.name
    try:
        made.parent.rename(kept.parent)
    except OSError:
        if not kept.parent.is_dir():
            raise
        try:
            load_model(kept)
        except ModelError as error:
            log.warning("a kept copy of a model was damaged and is put right", why=error.got)
            # In its place, where its engines are. Another process may be doing the same: what
            # it puts there is made of the same files.
            made.with_suffix(".onnx").replace(kept.with_suffix(".onnx"))
            made.replace(kept)
    return kept
