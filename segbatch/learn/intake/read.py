"""What a source is, by its content, and the way that each kind takes to a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segbatch.errors import ModelError, StorageError
from segbatch.infer.engine.adopt import DESCRIPTIONS
from segbatch.learn.intake.archive import opened
from segbatch.learn.intake.facts import Facts
from segbatch.learn.intake.finish import finish

if TYPE_CHECKING:
    from segbatch.learn.intake.facts import Wishes

Kind = Literal["package", "torchscript", "program", "weights", "onnx"]
READ = (
    "a segbatch checkpoint, TorchScript, a program of torch.export, ONNX, or a bioimage.io package"
)


def kind_of(source: Path) -> Kind:
    """Recognise a source by its content.

    Raises
    ------
    ModelError
        It is missing, empty, or nothing that is known.
    """
    if source.is_dir():
        if any((source / name).is_file() for name in DESCRIPTIONS):
            return "package"
        raise ModelError(f"{source}: a folder without {DESCRIPTIONS[0]}", READ, "check --model")
    if source.exists() and not source.is_file():
        raise ModelError(f"{source}: neither a file nor a folder", READ, "check --model")
    try:
        with source.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise ModelError(f"{source}: {error.strerror}", READ, "check --model") from error
    if source.suffix.lower() in (".yaml", ".yml"):
        return "package"
    if head.startswith(b"PK"):
        return _zip_kind(source)
    if re.match(rb"\x80[\x02-\x05]", head) or head.startswith(b"\x8a\x0al\xfc\x9cF\xf9"):
        return "weights"
    if (
        head[:1] == b"\x08" and len(head) > 1 and 0 < head[1] < 0x80
    ):  # the first field of ONNX: its version
        return "onnx"
    raise ModelError(
        f"{source}: neither of these by its first bytes {head[:8]!r}",
        READ,
        "check that the file is whole" if head else "the file is empty: copy it again",
    )


def _zip_kind(source: Path) -> Kind:
    with opened(source) as archive:
        names = archive.namelist()
        inner = {name.partition("/")[2] for name in names}
        if any(Path(name).name in DESCRIPTIONS for name in names):
            return "package"
        if "archive_format" in inner or any(n.startswith("models/") for n in inner):
            return "program"
        if "serialized_exported_program.json" in names:
            raise ModelError(
                f"{source}: a program of torch.export in the form before torch 2.8",
                "the present form",
                "load it with torch and save it again with torch.export.save",
            )
        if "constants.pkl" in inner and any(n.startswith("code/") for n in inner):
            return "torchscript"
        if "data.pkl" in inner:
            return "weights"
    raise ModelError(f"{source}: a zip archive of {len(names)} other files", READ, "check --model")


def stem_of(source: Path) -> str:
    """Return a model's name from its file's: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", source.stem).strip("._") or "model"


def read_source(source: Path, folder: Path, wishes: Wishes) -> Path:
    """Do what ``load_network`` says."""
    kind = kind_of(source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}", "a folder to write to") from error
    if wishes.name is not None and stem_of(Path(f"{wishes.name}.x")) != wishes.name:
        raise ModelError(
            f"name {wishes.name!r}", "letters, digits, dot, dash and underscore", "use another"
        )
    facts = Facts(kind=kind, name=stem_of(source), files=[source])
    if kind == "package":
        from segbatch.learn.intake.bioimageio import read_package

        return read_package(source, folder, wishes)
    return finish(network_of(kind, source, facts, wishes), facts, wishes, folder)


def network_of(kind: Kind, source: Path, facts: Facts, wishes: Wishes) -> Any:
    """Return the vetted ONNX graph in a file, and put what it says of itself into ``facts``."""
    if kind == "onnx":
        from segbatch.learn.intake.graph import read_onnx

        model, facts.files = read_onnx(source)
        return model
    if kind == "torchscript":
        from segbatch.learn.intake.forms.torchscript import read_torchscript

        return read_torchscript(source)
    if kind == "program":
        from segbatch.learn.intake.forms.program import read_program

        return read_program(source)
    from segbatch.learn.intake.forms.weights import read_weights

    return read_weights(source, facts, wishes)
