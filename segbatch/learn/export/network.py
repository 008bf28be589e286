"""From a checkpoint to what frames are processed with: an ONNX file and its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import torch

from segbatch.errors import ModelError, StorageError
from segbatch.infer.decide import sigmoid
from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine
from segbatch.infer.engine.cpu.openvino_engine import OpenVinoEngine
from segbatch.infer.engine.digest import sha256_of
from segbatch.infer.engine.made.likeness import PASSING_AGREEMENT, Answer, judge, likeness
from segbatch.infer.engine.manifest import Manifest, Parity, write_manifest
from segbatch.infer.engine.network.halo import measure_tiling
from segbatch.learn.intake.graph import without_remarks
from segbatch.learn.onnx_form import traced
from segbatch.learn.train import predict

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from segbatch.infer.engine.door import Engine
    from segbatch.learn.checkpoint import Card
    from segbatch.learn.data import Example
    from segbatch.learn.nets import UNet

# Same network, same arithmetic, another order of additions.
_LOGIT_TOLERANCE = 1e-4


def export(
    net: UNet, card: Card, manifest_file: Path, examples: list[Example], threads: int
) -> Manifest:
    """Write ``NAME.onnx`` beside ``manifest_file`` (``NAME.json``), and then the manifest.

    Batch, height and width stay free; batch norm is folded into the
    convolutions; stride and halo are measured; each processor engine and
    precision is compared with torch on ``examples``, which the network must not
    have been trained on.

    Raises
    ------
    ModelError
        The exported network does not compute what the checkpoint computes.
    StorageError
        The files cannot be written.
    """
    network = manifest_file.with_suffix(".onnx")
    try:
        network.write_bytes(to_onnx(net))
        _verify(net, network, threads)
        tiling = measure_tiling(
            network, net.architecture.in_channels, threads, net.architecture.stride
        )
        manifest = Manifest(
            name=card.name,
            file=network.name,
            sha256=sha256_of(network),
            classes=card.classes,
            normalisation=card.normalisation,
            stride=tiling.stride,
            halo_px=tiling.halo_px,
            exact_tiling=tiling.exact,
            threshold=card.threshold,
            command=card.command,
            training={"architecture": msgspec.to_builtins(card.architecture), **card.training},
            metrics=card.metrics,
            parity=measure_parity(net, network, examples, card.threshold, threads),
        )
        write_manifest(manifest, manifest_file)
    except OSError as error:
        raise StorageError(f"{network}: {error.strerror}", "a folder to write to") from error
    return manifest


def to_onnx(net: UNet) -> bytes:
    """Return the network as one ONNX file, input ``image``, output ``logits``."""
    net = net.eval()
    stride = net.architecture.stride
    rows, columns = (stride * torch.export.Dim(n, min=1, max=65536) for n in ("rows", "columns"))
    example = torch.zeros(2, net.architecture.in_channels, 4 * stride, 6 * stride)
    model = without_remarks(traced(net, example, rows, columns, "logits", "the network"))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _verify(net: UNet, network: Path, threads: int) -> None:
    """Compare logits of torch and ONNX Runtime on noise of two shapes."""
    stride = net.architecture.stride
    engine = OnnxRuntimeEngine(network, threads)
    try:
        for seed, (batch, rows, columns) in enumerate(((1, 8, 12), (3, 5, 4))):
            shape = (batch, net.architecture.in_channels, rows * stride, columns * stride)
            image = np.random.default_rng(seed).random(shape, np.float32)
            with torch.inference_mode():
                wanted = net(torch.from_numpy(image)).numpy()
            difference = float(np.abs(engine.run(image) - wanted).max())
            if difference > _LOGIT_TOLERANCE:
                raise ModelError(
                    f"{network.name} differs from its checkpoint by {difference:.2g} in logits",
                    f"at most {_LOGIT_TOLERANCE:g}",
                    "report this with the versions of torch, onnx and onnxruntime",
                )
    finally:
        engine.close()


def measure_parity(
    net: UNet, network: Path, examples: list[Example], threshold: float, threads: int
) -> list[Parity]:
    """Compare each processor engine and precision with torch, pixel by pixel.

    ``passed`` asks what the gate asks (``likeness.judge``): masks that agree in at least
    ``PASSING_AGREEMENT`` of all pixels, and objects that overlap as well.
    """
    wanted = [_decided(predict(net, example.image()), threshold) for example in examples]
    measured = []
    for name, precision in (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")):
        engine: Engine = (
            OnnxRuntimeEngine(network, threads)
            if name == "onnxruntime"
            else OpenVinoEngine(network, precision, threads)
        )
        try:
            found = [_probability(engine, e.image(), net.architecture.stride) for e in examples]
        finally:
            engine.close()
        alike = likeness("", wanted, [_decided(each, threshold) for each in found])
        measured.append(
            Parity(
                engine=name,
                precision=precision,
                max_probability_difference=alike.max_probability_difference or 0.0,
                mean_probability_difference=alike.mean_probability_difference or 0.0,
                mask_agreement=alike.mask_agreement,
                passed=judge([alike], PASSING_AGREEMENT, "torch").passed,
            )
        )
    return measured


def _decided(probability: NDArray[np.float32], threshold: float) -> Answer:
    return Answer((probability > threshold).astype(np.uint8), probability[None])


def _probability(engine: Engine, image: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    height, width = image.shape
    padded = np.pad(image, ((0, -height % stride), (0, -width % stride)), mode="reflect")
    with engine.request((1, 1, *padded.shape), 1) as request:
        request.input[:] = padded
        return sigmoid(request.infer()[0, 0, :height, :width])
