"""The engines that go through segbatch's ring of buffers, by name, each opened on this GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_nets
import numpy as np
import torch
from gpu_material import model_of, shape_of
from gpu_programs import OnnxRuntimeProgram, RingEngine, TorchProgram

from segbatch.infer.engine.made.artifact import Artifact, load_artifact
from segbatch.infer.engine.manifest import Model
from segbatch.infer.engine.tensorrt import Source, build
from segbatch.infer.engine.tensorrt.device import CudaDevice
from segbatch.infer.engine.tensorrt.driver import Gpu, ask
from segbatch.infer.engine.tensorrt.flavour import FLAVOURS, Flavour
from segbatch.infer.engine.tensorrt.program import TrtProgram

ROOT = Path(__file__).parents[1]
COMPILED, CUDNN, ONNXRUNTIME = "torch.compile", "cuDNN calls", "ONNX Runtime CUDA"
HOW = {
    COMPILED: "half, channels-last, batch norm folded, decision inside, one graph of kernels",
    CUDNN: "half, channels-last, convolution + bias + rectifier in one call, one graph of kernels",
    ONNXRUNTIME: "half, decision inside, on the ring's stream",
    "tensorrt": "half, decision inside, full TensorRT",
    "tensorrt_rtx": "half, decision inside, TensorRT for RTX",
}
Shape = tuple[int, int, int, int]


def new_device(*, tiny: bool) -> Any:
    """Return the GPU; in a dry run the tests' pretended one, whose memory is the host's."""
    if not tiny:
        torch.cuda.init()
        return CudaDevice()
    sys.path.append(str(ROOT))
    from tests.infer.pretend_gpu import PretendDevice

    return PretendDevice()


def open_engine(
    name: str, network: str, work: Path, frame_px: tuple[int, int], batch: int, *, tiny: bool
) -> RingEngine:
    """Open an engine of ``HOW`` for whole frames of one size.

    Raises
    ------
    Exception
        Whatever it is that keeps it from running here.
    """
    model = model_of(network, work)
    shape: Shape = (batch, *shape_of(model.manifest, frame_px)[1:])
    stride = model.manifest.stride or 1
    if name in FLAVOURS:
        return open_tensorrt(load_artifact(artifact_file(work, network, name)), tiny=tiny)
    device = new_device(tiny=tiny)
    try:
        if name == ONNXRUNTIME:
            import onnxruntime

            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise RuntimeError("onnxruntime-gpu is not installed: there is no CUDA provider")
            program: Any = OnnxRuntimeProgram(shape, stride, typed_network(model))
            return RingEngine(name, onnxruntime.__version__, "fp16", program, device)
        program = TorchProgram(device, shape, stride, torch_function(name, model, tiny=tiny))
        return RingEngine(name, torch.__version__, "fp16", program, device)
    except BaseException:
        device.close()
        raise


def torch_function(name: str, model: Model, *, tiny: bool) -> Callable[..., Any]:
    """Return the network with its decision, as torch runs it fastest."""
    where = "cpu" if tiny else "cuda"
    torch.backends.cudnn.benchmark = True
    net: Any = gpu_nets.folded(gpu_nets.as_trained(model)).half()
    net = net.to(where, memory_format=torch.channels_last)
    if name == CUDNN:
        net = gpu_nets.CudnnUNet(net)
    decide = gpu_nets.deciding(net, model.manifest.stride or 1, model.manifest.threshold)
    if name == CUDNN:
        return decide
    # Without a compiler in a dry run: what is compiled for a GPU is not tried by it anyway.
    return torch.compile(decide, dynamic=False, backend="eager" if tiny else "inductor")


def typed_network(model: Model) -> bytes:
    """Return the ONNX network in half precision, its decision appended."""
    import onnx

    from segbatch.learn.export.head import append_decision
    from segbatch.learn.export.precision import to_fp16

    half = onnx.load_from_string(to_fp16(model.file.read_bytes(), half_input=True))
    decided = append_decision(
        half, stride=model.manifest.stride or 1, threshold=model.manifest.threshold
    )
    return bytes(decided.SerializeToString())


def artifact_file(work: Path, network: str, flavour: str) -> Path:
    """Return the manifest of a TensorRT engine that ``build_tensorrt`` wrote."""
    return work / f"{network}.{flavour}-fp16.engine.json"


def build_tensorrt(
    network: str, flavour: Flavour, work: Path, frame_px: tuple[int, int]
) -> Artifact:
    """Build an engine as ``segbatch export-engine`` does, without its gate."""
    model = model_of(network, work)
    manifest = model.manifest
    return build(
        typed_network(model),
        shape_of(manifest, frame_px),
        work,
        network,
        source=Source(network, manifest.sha256, "fp16", manifest.threshold),
        flavour=flavour,
    )


def open_tensorrt(artifact: Artifact, *, tiny: bool) -> RingEngine:
    """Open an engine without asking whether this GPU is listed; only in a process that may die."""
    flavour = next(each for each in FLAVOURS if each == artifact.manifest.engine)
    gpu = ask(flavour).gpu or Gpu("none", "0.0", 0, 0, "", "")
    device = CudaDevice() if not tiny or gpu.processors else new_device(tiny=True)
    program: TrtProgram | None = None
    try:
        content = artifact.file.read_bytes()
        program = TrtProgram(content, flavour, artifact, gpu, device)
        version = artifact.manifest.version
        return RingEngine(flavour, version, "fp16", program, device, program.close)
    except BaseException:
        if program is not None:
            program.close()
        device.close()
        raise


def reference(work: Path, network: str) -> tuple[Any, Any]:
    """Return the inputs (N, 1, Y, X) and the logits that the processor gave, both float32."""
    with np.load(work / f"{network}.npz") as kept:
        return kept["inputs"], kept["logits"]
