"""The largest batch for which an engine fits into the GPU's memory, found by trying."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from segbatch.infer.engine.artifact import Artifact, write_artifact
from segbatch.infer.engine.tensorrt.builder import build
from segbatch.infer.engine.tensorrt.device import DeviceMemoryError
from segbatch.infer.engine.tensorrt.driver import why_unusable
from segbatch.infer.engine.tensorrt.runtime import TensorRtEngine
from segbatch.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from segbatch.infer.engine.tensorrt.builder import Shape, Source
    from segbatch.infer.engine.tensorrt.flavour import Flavour
    from segbatch.infer.engine.tensorrt.progress import Progress

T = TypeVar("T")
log = get_logger(__name__)


def build_largest(
    network: Path | bytes,
    input_shape: Shape,
    folder: Path,
    stem: str,
    *,
    source: Source,
    flavour: Flavour = "tensorrt_rtx",
    progress: Callable[[Progress], None] | None = None,
    try_out: Callable[[Artifact], object] | None = None,
) -> Artifact:
    """Build as ``build`` does, and again with half the batch while the GPU has no room.

    Parameters
    ----------
    try_out
        Runs the engine that was built, raising ``DeviceMemoryError`` where it does not fit; by
        default it is opened on this machine's GPU, and where none can be used it is taken as it is.

    Returns
    -------
    Artifact
        Where the batch was halved, ``options`` of its manifest holds the ``batch_wanted``.

    Raises
    ------
    DeviceMemoryError
        Not even a batch of one fits.
    EngineError, ModelError, StorageError, UsageError
        As ``build``, and what ``try_out`` raises.
    """
    if try_out is None:
        try_out = _opened if why_unusable(flavour) is None else _taken_as_it_is

    def attempt(batch: int) -> Artifact:
        shape = (batch, *input_shape[1:])
        made = build(
            network, shape, folder, stem, source=source, flavour=flavour, progress=progress
        )
        try_out(made)
        return made

    artifact, batch = largest_batch(input_shape[0], attempt)
    if batch == input_shape[0]:
        return artifact
    options = {**artifact.manifest.options, "batch_wanted": input_shape[0]}
    manifest = msgspec.structs.replace(artifact.manifest, options=options)
    write_artifact(manifest, artifact.manifest_file)
    return Artifact(manifest, artifact.manifest_file, artifact.file)


def _opened(artifact: Artifact) -> None:
    TensorRtEngine(artifact).close()


def _taken_as_it_is(_artifact: Artifact) -> None:
    """Find nothing out: there is no GPU to ask."""


def largest_batch(batch: int, attempt: Callable[[int], T]) -> tuple[T, int]:
    """Return what ``attempt`` makes of the largest batch that fits, and that batch.

    Parameters
    ----------
    batch
        To try first; halved each time that ``attempt`` finds no room.
    attempt
        Given a batch, builds and opens.

    Raises
    ------
    DeviceMemoryError
        Not even a batch of one fits.
    """
    while True:
        try:
            return attempt(batch), batch
        except DeviceMemoryError as error:
            if batch == 1:
                raise
            log.warning("batch halved", batch=batch, now=batch // 2, why=error.got)
            batch //= 2
