"""Networks from elsewhere: recognised, looked at, and written as models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.learn.intake.facts import Wishes


def load_network(
    source: Path,
    folder: Path,
    *,
    arch: str | None = None,
    name: str | None = None,
    wishes: Wishes | None = None,
) -> Path:
    """Write the network in ``source`` as ``NAME.onnx`` and ``NAME.json`` into ``folder``.

    Parameters
    ----------
    source
        A segbatch checkpoint, TorchScript, a program of ``torch.export``, ONNX, a bioimage.io
        package (folder, zip archive, or its description), or the weights of a known
        architecture. Recognised by content, not by name.
    folder
        Made where it does not exist.
    arch, name
        As in ``wishes``, over which they win.
    wishes
        What is known better than the file says.

    Returns
    -------
    path
        Of the manifest.

    Raises
    ------
    ModelError
        It holds code, is broken or hostile, or cannot be run on frames of any size.
    StorageError
        ``folder`` cannot be written.

    Notes
    -----
    TorchScript is loaded by torch's own interpreter: run this in a process of its own, with
    limits, as ``segbatch.infer.engine.network.reading`` does.
    """
    import msgspec

    from segbatch.learn.intake.facts import Wishes
    from segbatch.learn.intake.read import read_source

    wishes = wishes or Wishes()
    wishes = msgspec.structs.replace(wishes, arch=arch or wishes.arch, name=name or wishes.name)
    return read_source(source, folder, wishes)
