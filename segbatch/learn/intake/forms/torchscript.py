"""TorchScript archives: their code is read before torch sees it, and only then loaded.

A TorchScript file is a program. Torch interprets it without Python, yet its operators include
ones that read and write files, and loading runs the archive's own methods. So its code and its
data are looked at here first (``script_code``, ``script_data``), what torch made of them is looked
at again before any of it runs (``script_graph``), and only then is it run. What remains are
loops without end and tensors without measure; against those the process has limits.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from segbatch.errors import ModelError
from segbatch.learn.intake.archive import opened, text
from segbatch.learn.intake.forms.export import script_to_onnx
from segbatch.learn.intake.forms.script_code import Code, OddError
from segbatch.learn.intake.forms.script_data import look_at_data
from segbatch.learn.intake.forms.script_graph import look_at_graphs, trained_layer
from segbatch.learn.intake.forms.sound import in_training, look_at_weights

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_CODE = 16 * 1024**2
ONNX = "export the network as ONNX where it was trained, and give that file"


def read_torchscript(file: Path) -> Any:
    """Return the vetted ONNX graph of a TorchScript file.

    Raises
    ------
    ModelError
        Its code does more than compute, or it cannot be loaded or exported.
    """
    try:
        script = torch.jit.load(looked_at(file), map_location="cpu")  # type: ignore[no-untyped-call]
        look_at_graphs(script)
        _look_at_input(script, file)
        look_at_weights(script.named_parameters(), str(file))
        script.eval()
        if layer := trained_layer(script):
            raise in_training(str(file), layer)
    except OddError as odd:
        raise _refused(file, odd) from odd
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise ModelError(
            f"{file}: TorchScript that torch cannot load: "
            f"{' '.join(str(error).split()).partition('. ')[0][:200]}",
            "TorchScript that this torch loads",
            ONNX,
        ) from error
    return script_to_onnx(script, str(file))


def looked_at(file: Path) -> io.BytesIO:
    """Return an archive of what was looked at, and of nothing else.

    It is written anew, the code from its syntax trees, so that torch cannot read out of the file
    what was not seen here.

    Raises
    ------
    ModelError
        Its code, or its data, call for anything that is not let through.
    """
    try:
        return _written_anew(file)
    except OddError as odd:
        raise _refused(file, odd) from odd


def _written_anew(file: Path) -> io.BytesIO:
    whole = io.BytesIO()
    with opened(file) as archive, zipfile.ZipFile(whole, "w") as again:
        names = [name for name in archive.namelist() if not name.endswith(".debug_pkl")]
        missing = {"data.pkl", "version"} - {name.partition("/")[2] for name in names}
        if missing:
            raise ModelError(
                f"{file}: a TorchScript archive without {' and '.join(sorted(missing))}",
                "a whole file of torch.jit.save",
                "copy it again, or save it again where it was made",
            )
        sources = [name for name in names if "/code/" in name and name.endswith(".py")]
        odd = [name for name in names if "/code/" in name and name not in sources]
        if odd or sum(archive.getinfo(name).file_size for name in sources) > LARGEST_CODE:
            raise OddError(odd[0] if odd else "code of more than 16 MiB")
        code = Code({name: text(archive, name, file) for name in sources})
        for name in names:
            if name in sources:
                content = code.plain(name)
            else:
                content = text(archive, name, file, largest=1 << 31)
            if name.endswith(".pkl"):
                look_at_data(name, content, code.types)
            again.writestr(name, content)
    whole.seek(0)
    return whole


def _look_at_input(script: Any, file: Path) -> None:
    """Raise ModelError unless one image is all that ``forward`` needs."""
    given = [each.name for each in script.forward.schema.arguments if not each.has_default_value()]
    if len(given) != 2:
        raise ModelError(
            f"{file}: {len(given) - 1} inputs ({', '.join(given[1:])})",
            "one, an image",
            "export the network with its image as the only input",
        )


def _refused(file: Path, odd: OddError) -> ModelError:
    return ModelError(
        f"{file}: TorchScript with {odd}",
        "code that computes on tensors and does nothing else",
        ONNX,
    )
