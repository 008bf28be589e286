"""From an ONNX file to an engine's bytes and the manifest beside them.

Networks are strongly typed: every precision is what the ONNX file says, because TensorRT 11 and
the RTX flavour know nothing else. One static shape, since kernels are tuned for one; a batch
that is not full is padded when it runs.

The library's parser says yes to an empty file and to some that are no network at all, so a
file is checked before it is parsed and counted afterwards.
"""

from __future__ import annotations

import hashlib
import platform
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from segbatch import __version__
from segbatch.errors import EngineError, ModelError, StorageError, UsageError
from segbatch.infer.engine.kept import kept_file, read_kept, write_kept
from segbatch.infer.engine.made.artifact import (
    SUFFIX,
    Artifact,
    EngineManifest,
    Hardware,
    Precision,
    write_artifact,
)
from segbatch.infer.engine.tensorrt.driver import (
    Gpu,
    driver_there,
    lately,
    listed_capabilities,
)
from segbatch.infer.engine.tensorrt.flavour import load, logger, said
from segbatch.infer.engine.tensorrt.progress import listener
from segbatch.log import get_logger
from segbatch.wholefile import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from segbatch.infer.engine.made.artifact import Shape
    from segbatch.infer.engine.tensorrt.flavour import Flavour
    from segbatch.infer.engine.tensorrt.progress import Progress

MASK: Final = "mask"
# What the buffers carry to the GPU and back.
CARRIED: Final = ("float32", "float16", "uint8")
# What an RTX engine runs on unless it is built for something else (its support matrix).
TOGETHER: Final = ("8.6", "8.9", "12.0")
log = get_logger(__name__)
# The builder is not made for two at a time, and its errors are told apart by when they are said.
_building = threading.Lock()


@dataclass(frozen=True, slots=True)
class Source:
    """What an engine's manifest says of where it came from.

    Attributes
    ----------
    model
        Name of the model.
    sha256
        Of the model's network as ``open_model`` gives it, not of the typed file made of it.
    precision
        Of the typed file.
    threshold
        That was appended with the decision; None where it was not, or for several classes.
    command
        That made the engine.
    """

    model: str
    sha256: str
    precision: Precision
    threshold: float | None = None
    command: str = ""


def build(
    network: Path | bytes,
    input_shape: Shape,
    folder: Path,
    stem: str,
    *,
    source: Source,
    flavour: Flavour = "tensorrt_rtx",
    compute_capability: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Artifact:
    """Build an engine and write it with its manifest, whole or not at all.

    Parameters
    ----------
    network
        ONNX file, or its bytes, typed as it is to be computed; one image as input.
    input_shape
        The (N, C, Y, X) that the engine will take, and no other.
    folder, stem
        Where, and the model's stem: ``STEM.ENGINE-PRECISION.engine`` and
        ``STEM.ENGINE-PRECISION.engine.json``.
    source
        What the manifest says of where it came from.
    flavour
        ``tensorrt`` needs the GPU that the engine is for; ``tensorrt_rtx`` needs none.
    compute_capability
        Of the GPUs that an RTX engine is for, as in ``7.5``; None: of those that the library
        takes together, or of this machine's where it is none of them, as Turing is.
    progress
        Called now and then, from threads of the library; what it raises stops the build.

    Raises
    ------
    UsageError
        The flavour or ``onnx`` is not installed.
    ModelError
        The file is no ONNX network.
    EngineError
        The flavour cannot build it, or no engine of it for this shape.
    StorageError
        The folder cannot be written.
    """
    started = time.monotonic()
    gpu = _gpu_to_tune_on(flavour)
    if flavour == "tensorrt_rtx" and compute_capability is None:
        compute_capability = own_capability(flavour)
    content = network if isinstance(network, bytes) else _read(network)
    found = checked(content)
    trt = load(flavour)
    with _building:
        blob = _built(trt, flavour, content, input_shape, gpu or compute_capability, progress)
    name = f"{stem}.{flavour}-{source.precision}"
    manifest = EngineManifest(
        model=source.model,
        file=f"{name}.engine",
        sha256=hashlib.sha256(blob).hexdigest(),
        source_sha256=source.sha256,
        engine=flavour,
        version=str(trt.__version__),
        precision=source.precision,
        input_shape=input_shape,
        decides=MASK in found.outputs,
        threshold=source.threshold,
        hardware=_hardware(gpu, compute_capability),
        options={
            "typed_sha256": hashlib.sha256(content).hexdigest(),
            "input_dtype": found.input_dtype,
            "outputs": list(found.outputs),
        },
        build_s=round(time.monotonic() - started, 3),
        command=source.command,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        software=f"segbatch {__version__}",
    )
    artifact = Artifact(manifest, folder / f"{name}{SUFFIX}", folder / manifest.file)
    try:
        write_whole(artifact.file, blob)
        write_artifact(manifest, artifact.manifest_file)
    except OSError as error:
        raise StorageError(f"{artifact.file}: {error.strerror}", "a folder to write to") from error
    log.info("engine built", engine=flavour, bytes=len(blob), seconds=manifest.build_s)
    return artifact


@dataclass(frozen=True, slots=True)
class Checked:
    """What an ONNX file says of itself: its input's name and dtype, its outputs' names."""

    input: str
    input_dtype: str
    outputs: tuple[str, ...]


def checked(content: bytes) -> Checked:
    """Check that ``content`` is an ONNX network of one image, with all its weights inside.

    Raises
    ------
    UsageError
        ``onnx`` is not installed.
    ModelError
        It is none.
    """
    try:
        import onnx
    except ImportError as error:
        raise UsageError(
            "onnx is not installed", "the learn extra", "pip install 'segbatch[learn]'"
        ) from error
    from google.protobuf.message import DecodeError
    from onnx import TensorProto

    wanted = "an ONNX network of one input (N, C, Y, X), its weights in the same file"
    try:
        model = onnx.load_model_from_string(content)
        # Before the checker, which would look for the files that the weights name.
        if any(each.data_location == TensorProto.EXTERNAL for each in model.graph.initializer):
            raise ModelError("a network whose weights stand in other files", wanted)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{len(content)} bytes that are no network: {reason}", wanted) from error
    graph = model.graph
    weights = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    if len(inputs) != 1 or not graph.output or not graph.node:
        raise ModelError(
            f"a network of {len(inputs)} inputs, {len(graph.node)} nodes and "
            f"{len(graph.output)} outputs",
            wanted,
        )
    types = {each.name: _dtype(each) for each in (*inputs, *graph.output)}
    odd = {name: dtype for name, dtype in types.items() if dtype not in CARRIED}
    if odd or types[inputs[0].name] == "uint8":
        raise ModelError(
            f"a network whose inputs and outputs are {types}",
            "an image of float32 or float16, outputs of these or uint8",
            "convert them inside the network",
        )
    return Checked(inputs[0].name, types[inputs[0].name], tuple(x.name for x in graph.output))


def _dtype(value: Any) -> str:
    """Return the name of an input's or output's type of numbers."""
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _read(network: Path) -> bytes:
    try:
        return network.read_bytes()
    except OSError as error:
        raise ModelError(f"network {network}: {error.strerror}", "a readable file") from error


def _gpu_to_tune_on(flavour: Flavour) -> Gpu | None:
    """Return the GPU that full TensorRT builds on and for; None for the RTX flavour."""
    if flavour == "tensorrt_rtx":
        load(flavour)
        return None
    answer = lately(flavour)
    if answer.why or answer.gpu is None:
        raise EngineError(
            f"full TensorRT cannot build here: {answer.why}",
            "the GPU that the engine is for: kernels are timed on it",
            "build there, or with --engine tensorrt_rtx, which needs no GPU to build",
        )
    return answer.gpu


def own_capability(flavour: Flavour) -> str | None:
    """Return this machine's compute capability where an RTX engine has to be built for it alone."""
    if not driver_there():
        return None
    gpu = lately(flavour).gpu
    if gpu is None or gpu.compute_capability in TOGETHER:
        return None
    listed = listed_capabilities(load(flavour))
    return gpu.compute_capability if gpu.compute_capability in listed else None


def _hardware(gpu: Gpu | None, compute_capability: str | None) -> Hardware:
    if gpu is None:
        return Hardware(compute_capability=compute_capability)
    return Hardware(
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver or None,
        cuda=gpu.cuda,
        platform=f"{platform.system()}-{platform.machine()}",
    )


def _built(
    trt: Any,
    flavour: Flavour,
    content: bytes,
    shape: Shape,
    target: Gpu | str | None,
    progress: Callable[[Progress], None] | None,
) -> bytes:
    """Return the engine's bytes, for a GPU to tune on, a compute capability, or as is usual."""
    with logger(flavour).errors() as errors:
        builder = trt.Builder(logger(flavour))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        _parse(trt, flavour, network, content)
        config = builder.create_builder_config()
        # On by default, and fp32 in name only: products of 10 bits.
        config.clear_flag(trt.BuilderFlag.TF32)
        _fix_shape(builder, network, config, shape)
        timing = _use_timing_cache(trt, config, target) if isinstance(target, Gpu) else None
        if isinstance(target, str):
            _aim(trt, config, target)
        monitor = listener(trt, progress or _silent)
        config.progress_monitor = monitor
        blob = builder.build_serialized_network(network, config)
        if monitor.raised is not None:
            raise monitor.raised
        if blob is None:
            raise EngineError(
                f"{flavour} {trt.__version__} built no engine for input {shape}: {said(errors)}",
                "a network that it can build",
                "use --engine onnxruntime or openvino, or another version of the library",
            )
        if timing is not None:
            write_kept(timing, bytes(config.get_timing_cache().serialize()))
        return bytes(blob)


def _silent(_progress: Progress) -> None:
    """Tell nobody; being called, it lets an interrupt by the keyboard through."""


def _parse(trt: Any, flavour: Flavour, network: Any, content: bytes) -> None:
    parser = trt.OnnxParser(network, logger(flavour))
    parsed = parser.parse(content)
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    counts = (network.num_layers, network.num_inputs, network.num_outputs)
    if not parsed or errors or not all(counts):
        reasons = said([f"{each.node_name()}: {each.desc()}" for each in errors])
        raise EngineError(
            f"{flavour} {trt.__version__} does not take the network ({counts[0]} layers, "
            f"{counts[1]} inputs, {counts[2]} outputs understood): {reasons}",
            "operators that its parser knows",
            "use --engine onnxruntime or openvino, or another version of the library",
        )


def _fix_shape(builder: Any, network: Any, config: Any, shape: Shape) -> None:
    """Fix the input's shape, where the network leaves it free, by a profile of one shape."""
    image = network.get_input(0)
    declared = tuple(image.shape)
    if len(declared) != 4 or any(
        side not in (-1, wanted) for side, wanted in zip(declared, shape, strict=True)
    ):
        raise EngineError(
            f"a network whose input is {declared}",
            f"one that takes {shape} (-1 stands for any)",
            "export the network with free sides, or choose its shape",
        )
    if -1 in declared:
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, shape, shape, shape)
        config.add_optimization_profile(profile)


def _aim(trt: Any, config: Any, compute_capability: str) -> None:
    """Build for GPUs of one compute capability."""
    listed = listed_capabilities(trt)
    if compute_capability not in listed:
        raise EngineError(
            f"compute capability {compute_capability}",
            f"one that {trt.__name__} lists: {', '.join(sorted(listed, key=float))}",
            "leave it out for the GPUs of usual RTX PCs",
        )
    config.num_compute_capabilities = 1
    member = "SM" + compute_capability.replace(".", "")
    config.set_compute_capability(getattr(trt.ComputeCapability, member), 0)


def _use_timing_cache(trt: Any, config: Any, gpu: Gpu) -> Path:
    """Start from the timings of earlier builds on this GPU; return where to keep them."""
    file = kept_file(
        "tensorrt",
        "timing",
        str(trt.__version__),
        gpu.name,
        gpu.compute_capability,
        gpu.driver,
        gpu.cuda,
    )
    timings = config.create_timing_cache(read_kept(file))
    if not config.set_timing_cache(timings, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return file
