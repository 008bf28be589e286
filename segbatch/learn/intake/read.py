"""What a source is, by its content, and the way that each kind takes to a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segbatch.errors import ModelError, StorageError
from segbatch.infer.engine.network.adopt import DESCRIPTIONS, main_file, refuse_engine
from segbatch.learn.intake.archive import opened
from segbatch.learn.intake.facts import NAME, Facts, name_of
from segbatch.learn.intake.finish import finish
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.learn.intake.facts import Wishes

Kind = Literal["package", "torchscript", "program", "weights", "onnx"]
log = get_logger(__name__)
READ = (
    "a segbatch checkpoint, TorchScript, a program of torch.export, ONNX, or a bioimage.io package"
)

# What else comes with the endings of networks: its first bytes, what it is, what to do.
OTHERS = (
    (
        rb"\x89HDF",
        "an HDF5 file, as Keras writes it",
        "export the network as ONNX where it was trained (tf2onnx)",
    ),
    (
        rb'.{5}\0\0\0\{"',
        "weights of safetensors",
        "save them as torch does, torch.save(safetensors.torch.load_file(FILE), 'net.pt')",
    ),
    (
        rb"ftrt|.{0,24}ptrt",
        "an engine of TensorRT",
        "give the network that it was made of; segbatch export-engine makes its own",
    ),
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS in place of the file",
        "fetch the file: git lfs pull",
    ),
    (
        rb"\s*<(!doctype|html|\?xml)",
        "a web page in place of the file",
        "download the file itself",
    ),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf", "a compressed file", "unpack it first"),
    (
        rb".{257}ustar|sys_info|pickle",
        "a tar archive",
        "unpack it, or save the network again with a torch of today",
    ),
)


def kind_of(source: Path) -> Kind:
    """Recognise a source by its content.

    Raises
    ------
    ModelError
        It is missing, empty, an engine of a model, or nothing that is known.
    """
    if source.is_dir():
        main_file(source)
        return "package"
    if source.exists() and not source.is_file():
        raise ModelError(f"{source}: neither a file nor a folder", READ, "check --model")
    refuse_engine(source)
    try:
        with source.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise ModelError(f"{source}: {error.strerror}", READ, "check --model") from error
    if source.suffix.lower() in (".yaml", ".yml"):
        return "package"
    if head.startswith(b"PK"):
        return _zip_kind(source)
    if not head:
        raise ModelError(f"{source}: an empty file", READ, "copy it again")
    if re.match(rb"\x80[\x02-\x05]|\x8a\x0al\xfc\x9cF\xf9|\((dp|lp|ip)\d|[}\])]q\x00", head):
        return "weights"
    if (
        head[:1] == b"\x08" and len(head) > 1 and 0 < head[1] < 0x80
    ):  # the first field of ONNX: its version
        return "onnx"
    what, remedy = _told(head)
    raise ModelError(f"{source}: {what}", READ, remedy)


def _told(head: bytes) -> tuple[str, str]:
    """Say in plain words what a file is that is no network to take in, and what to do."""
    for begins, what, remedy in OTHERS:
        if re.match(begins, head, re.IGNORECASE | re.DOTALL):
            return what, remedy
    text = head.split(b"\0")[0]
    if text == head and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        words = " ".join(head[:60].decode(errors="replace").split())
        return f"a text file that begins with {words!r}", "name the network's own file"
    return (
        f"none of these by its first bytes {head[:8]!r}",
        "check that the file is whole, or export the network as ONNX",
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
    first = ", ".join(names[:3]) or "nothing"
    raise ModelError(
        f"{source}: a zip archive of {first}" + (" ..." if len(names) > 3 else ""),
        READ,
        "unpack it and name the network in it, or export the network as ONNX",
    )


def read_source(source: Path, folder: Path, wishes: Wishes) -> Path:
    """Do what ``load_network`` says."""
    kind = kind_of(source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}", "a folder to write to") from error
    if wishes.name is not None and name_of(wishes.name) != wishes.name:
        raise ModelError(f"name {wishes.name!r}", NAME, f"use another, as {name_of(wishes.name)}")
    facts = Facts(kind=kind, name=name_of(source.stem), files=[source])
    log.info("reading the network", kind=kind)
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
