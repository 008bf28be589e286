"""A package's description, of format 0.3, 0.4 or 0.5, in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from segbatch.errors import ModelError
from segbatch.learn.intake.facts import name_of

if TYPE_CHECKING:
    from pathlib import Path

    from segbatch.learn.intake.bioimageio.package import Package
    from segbatch.learn.intake.read import Kind

FORMATS = ("0.3", "0.4", "0.5")
AXES = "bcyx"
KINDS: dict[str, Kind] = {
    "onnx": "onnx",
    "torchscript": "torchscript",
    "pytorch_script": "torchscript",
    "pytorch_state_dict": "weights",
}


class Operation(msgspec.Struct, frozen=True):
    """One step before or after the network."""

    name: str
    given: dict[str, Any] = {}


@dataclass(frozen=True)
class Weights:
    """One form of the network: its file, how to read it, and its architecture where known."""

    kind: str
    read_as: Kind
    source: str
    sha256: str | None
    arch: str | None


@dataclass(frozen=True)
class Tensor:
    """One input or output: its test array and its steps."""

    name: str
    test: str | None
    test_sha256: str | None
    steps: list[Operation]
    channel_names: list[str]
    pixel_size_um: float | None


@dataclass(frozen=True)
class Description:
    """What is used of a description."""

    told: str
    format_version: str
    name: str
    weights: list[Weights]
    input: Tensor
    output: Tensor
    outputs: int
    output_index: int
    tolerances: dict[str, Any]
    record: dict[str, Any]

    @property
    def classes(self) -> list[str] | None:
        """Names of the output's channels, where there are several."""
        names = self.output.channel_names
        return names if len(names) > 1 else None

    @property
    def pixel_size_um(self) -> float | None:
        """Of the input."""
        return self.input.pixel_size_um


def describe(package: Package, wanted: str | None) -> Description:
    """Return a package's description.

    Raises
    ------
    ModelError
        It is of another type or format, or its tensors or weights are none that can be run.
    """
    told, content = str(package.source), package.content
    version = str(content.get("format_version", ""))
    if content.get("type", "model") != "model" or not version.startswith(FORMATS):
        raise ModelError(
            f"{told}: type {content.get('type')!r}, format_version {version!r}",
            f"a model of format {', '.join(FORMATS)}",
            "download the package again in a current form",
        )
    try:
        read = _tensors_05 if version.startswith("0.5") else _tensors_04
        inputs = read(content, "input", told)
        outputs = read(content, "output", told)
        if len(inputs) != 1:
            raise ModelError(f"{told}: {len(inputs)} inputs", "one, an image", "use another")
        index = _output(outputs, wanted, told)
        return Description(
            told=told,
            format_version=version,
            name=_name(content, package),
            weights=_weights(content, package),
            input=inputs[0],
            output=outputs[index],
            outputs=len(outputs),
            output_index=index,
            tolerances=_tolerances(content),
            record={
                key: content[key]
                for key in ("name", "version", "license", "id", "format_version")
                if isinstance(content.get(key), str | int | float)
            },
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ModelError(
            f"{told}: {type(error).__name__} {error} in its description",
            f"a description of format {version}",
            "download the package again",
        ) from error


def _name(content: dict[str, Any], package: Package) -> str:
    return name_of(str(content.get("name") or _called(package.source)))[:80]


def _called(source: Path) -> str:
    return source.name if source.is_dir() else source.stem


def _output(outputs: list[Tensor], wanted: str | None, told: str) -> int:
    names = [output.name for output in outputs]
    if wanted is None and len(outputs) == 1:
        return 0
    if wanted not in names:
        raise ModelError(
            f"{told}: outputs {', '.join(names)}", "one of them", "name it with --output"
        )
    return names.index(wanted)


def _axes(found: str, tensor: str, told: str) -> None:
    if found != AXES:
        raise ModelError(
            f"{told}: tensor {tensor} with axes {found!r}",
            f"{AXES!r}: batch, channel, y, x",
            "use a two-dimensional network in this order of axes",
        )


def _tensors_04(
    content: dict[str, Any], which: Literal["input", "output"], told: str
) -> list[Tensor]:
    tests = content.get(f"test_{which}s") or []
    made = []
    for i, given in enumerate(content[f"{which}s"]):
        _axes(str(given["axes"]), str(given["name"]), told)
        test = tests[i] if i < len(tests) else None
        steps = given.get("preprocessing" if which == "input" else "postprocessing") or []
        made.append(
            Tensor(
                name=str(given["name"]),
                test=test["source"] if isinstance(test, dict) else test,
                test_sha256=test.get("sha256") if isinstance(test, dict) else None,
                steps=[Operation(str(s["name"]), dict(s.get("kwargs") or {})) for s in steps],
                channel_names=[],
                pixel_size_um=None,
            )
        )
    return made


def _tensors_05(
    content: dict[str, Any], which: Literal["input", "output"], told: str
) -> list[Tensor]:
    made = []
    for given in content[f"{which}s"]:
        axes = [dict(axis) for axis in given["axes"]]
        letters = ""
        for axis in axes:
            kind = axis["type"]
            letters += str(axis.get("id", "x")) if kind == "space" else kind[0]
        name = str(given.get("id", which))
        _axes(letters, name, told)
        test = given.get("test_tensor") or {}
        steps = given.get("preprocessing" if which == "input" else "postprocessing") or []
        made.append(
            Tensor(
                name=name,
                test=test.get("source"),
                test_sha256=test.get("sha256"),
                steps=[Operation(str(s["id"]), dict(s.get("kwargs") or {})) for s in steps],
                channel_names=[str(each) for each in axes[1].get("channel_names") or []],
                pixel_size_um=float(axes[2]["scale"])
                if axes[2].get("unit") == "micrometer" and axes[2].get("scale")
                else None,
            )
        )
    return made


def _weights(content: dict[str, Any], package: Package) -> list[Weights]:
    """Return the forms of the network that can be read, best first."""
    told = package.source
    made, code = [], []
    for kind, read_as in KINDS.items():
        given = content["weights"].get(kind)
        if not given:
            continue
        arch = _architecture(given)
        if read_as == "weights" and arch is None:
            code.append(str(_callable(given)))
        if package.has(str(given["source"])):
            made.append(Weights(kind, read_as, given["source"], given.get("sha256"), arch))
    readable = [each for each in made if each.read_as != "weights" or each.arch]
    if readable or made:
        return readable or made
    formats = ", ".join(content["weights"]) or "none"
    raise ModelError(
        f"{told}: weights as {formats}" + (f" for the Python code {code[0]}" if code else ""),
        "ONNX or TorchScript in the package, or weights of an architecture that is known",
        "export it as ONNX where it was trained; Python code of a package is never run",
    )


def _callable(given: dict[str, Any]) -> Any:
    architecture = given.get("architecture")
    if isinstance(architecture, dict):
        return f"{architecture.get('source') or architecture.get('import_from')}:" + str(
            architecture.get("callable")
        )
    return architecture


def _architecture(given: dict[str, Any]) -> str | None:
    """Return our name of an architecture of a known library, None of any other."""
    architecture, options = given.get("architecture"), given.get("kwargs") or {}
    where = str(architecture)
    if isinstance(architecture, dict):
        options = architecture.get("kwargs") or {}
        where = f"{architecture.get('import_from')}.{architecture.get('callable')}"
    if where.startswith("segmentation_models_pytorch.") and where.endswith(".Unet"):
        return f"smp-unet-{options.get('encoder_name', 'resnet34')}"
    return None


def _tolerances(content: dict[str, Any]) -> dict[str, Any]:
    """Return stated tolerances by the kind of weights; ``""`` for all kinds."""
    config = content.get("config") or {}
    ours = config.get("bioimageio") or {}
    found: dict[str, Any] = {}
    for kind, each in (ours.get("test_kwargs") or {}).items():
        found[str(kind)] = dict(each)
    for each in ours.get("reproducibility_tolerance") or []:
        for kind in each.get("weights_formats") or [""]:
            found[str(kind)] = dict(each)
    return found
