"""Whether an engine that was made beforehand may be opened here; each refusal says what would.

An engine holds for one version of the library, and one of full TensorRT for one GPU, too; neither
is asked to be portable, since building again is one command. What the RTX flavour writes into the
first bytes of an engine is asked last: its library reads them without loading the engine.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from segbatch.errors import EngineError
from segbatch.infer.engine.digest import read_verified
from segbatch.infer.engine.made.artifact import rebuild_command
from segbatch.infer.engine.tensorrt.driver import Gpu, lately
from segbatch.infer.engine.tensorrt.flavour import FLAVOURS, INSTALL, Flavour, installed, load
from segbatch.infer.engine.tensorrt.flavour import logger as logger_of
from segbatch.log import get_logger

if TYPE_CHECKING:
    from segbatch.infer.engine.made.artifact import Artifact

HEADER_BYTES: Final = 64
log = get_logger(__name__)


def fitting_bytes(artifact: Artifact, source_sha256: str | None = None) -> tuple[bytes, Gpu]:
    """Return the engine's bytes, hash verified, and the GPU that will run it.

    Parameters
    ----------
    source_sha256
        Of the network that the caller would run; None where it does not matter.

    Raises
    ------
    EngineError
        It does not fit: the library that it is for, its version, the network, the file, the
        driver, or the GPU.
    """
    flavour = flavour_of(artifact)
    refuse_origin(artifact, source_sha256)
    again = rebuild_command(artifact.manifest_file)
    # Read once, so that the bytes that were verified are those that are opened.
    sha256 = artifact.manifest.sha256
    content = read_verified(artifact.file, sha256, kind="engine", remedy=again)
    answer = lately(flavour)
    if answer.why or answer.gpu is None:
        raise EngineError(
            f"engine {artifact.file} cannot run here: {answer.why}",
            f"a GPU and a driver that {flavour} can use",
            "use --engine openvino, or see segbatch doctor",
        )
    refuse_hardware(artifact, answer.gpu)
    refuse_header(artifact, content)
    return content, answer.gpu


def flavour_of(artifact: Artifact) -> Flavour:
    """Return the library that an engine is for.

    Raises
    ------
    EngineError
        It is an engine of another kind, or the library is not installed.
    """
    named = artifact.manifest.engine
    flavour = next((each for each in FLAVOURS if each == named), None)
    if flavour is None:
        raise EngineError(f"engine {artifact.file} of {named}", f"one of {', '.join(FLAVOURS)}")
    if flavour not in installed():
        again = rebuild_command(artifact.manifest_file)
        raise EngineError(
            f"engine {artifact.file} needs {flavour}, which is not installed",
            f"{flavour} {artifact.manifest.version}",
            f"{INSTALL[flavour]}, or build for what is installed: {again}",
        )
    return flavour


def refuse_origin(artifact: Artifact, source_sha256: str | None) -> None:
    """Refuse an engine of another version of the library, or of another network."""
    manifest = artifact.manifest
    version = str(load(flavour_of(artifact)).__version__)
    if manifest.version != version:
        raise EngineError(
            f"engine {artifact.file} was built by {manifest.engine} {manifest.version}",
            f"the installed version, {version}",
            rebuild_command(artifact.manifest_file),
        )
    if source_sha256 is not None and manifest.source_sha256 != source_sha256:
        raise EngineError(
            f"engine {artifact.file} was built of a network of SHA-256 {manifest.source_sha256}",
            f"the network that is to run, {source_sha256}",
            rebuild_command(artifact.manifest_file),
        )


def refuse_hardware(artifact: Artifact, gpu: Gpu) -> None:
    """Refuse an engine that was tuned for another GPU, or built under a newer driver."""
    built = artifact.manifest.hardware
    for what, wanted, found in (
        ("GPU", built.gpu, gpu.name),
        ("compute capability", built.compute_capability, gpu.compute_capability),
    ):
        if wanted is not None and wanted != found:
            raise EngineError(
                f"{what} {found}, and engine {artifact.file} was built for {wanted}",
                f"an engine for {found}",
                rebuild_command(artifact.manifest_file),
            )
    for what, wanted, found in (
        ("driver", built.driver, gpu.driver),
        ("CUDA", built.cuda, gpu.cuda),
    ):
        if wanted and found and _parts(found) < _parts(wanted):
            raise EngineError(
                f"{what} {found}, and engine {artifact.file} was built under {wanted}",
                f"{what} {wanted} or newer",
                f"update the driver, or {rebuild_command(artifact.manifest_file)}",
            )


def refuse_header(artifact: Artifact, content: bytes) -> None:
    """Refuse an engine whose first bytes the library itself finds wrong; RTX flavour only."""
    flavour = flavour_of(artifact)
    trt = load(flavour)
    if not hasattr(trt.Runtime, "get_engine_validity"):
        return
    with logger_of(flavour).errors():
        validity, diagnostics = trt.Runtime(logger_of(flavour)).get_engine_validity(
            content[:HEADER_BYTES]
        )
    if validity == trt.EngineValidity.SUBOPTIMAL:
        log.warning(
            "engine not optimal", file=str(artifact.file), why=_words(trt, int(diagnostics))
        )
    if validity == trt.EngineValidity.INVALID and diagnostics:
        raise EngineError(
            f"engine {artifact.file}: {_words(trt, int(diagnostics))}",
            f"an engine that {flavour} {trt.__version__} finds valid on this machine",
            rebuild_command(artifact.manifest_file),
        )


def _words(trt: Any, diagnostics: int) -> str:
    """Return the library's diagnostics, bits of a number, as words."""
    members = trt.EngineInvalidityDiagnostics.__members__.items()
    names = [name for name, member in members if diagnostics & int(member)]
    return ", ".join(name.lower().replace("_", " ") for name in names)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
