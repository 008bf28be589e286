"""A network in another precision: FP16 with normalisation kept in fp32, INT8 by calibration.

Precision lives in the ONNX file, where every engine finds it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from segbatch.errors import ModelError
from segbatch.infer.engine.half import LARGEST
from segbatch.learn.export.layers import activations, exposed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Sums of squares overflow where the values themselves do not, so that these, and what they are
# made of where an exporter took them apart, keep fp32.
KEPT_FP32 = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Pow",
    "Reciprocal",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Sqrt",
)
# From here on half of an fp16 number's range is left in the logarithm of what frames may bring.
NEAR_LARGEST_FP16 = 1e4
# Values beyond this part of all are clipped: a few outliers would take the steps of the rest.
CALIBRATION_PERCENTILE = 99.999


@dataclass(frozen=True, slots=True)
class Range:
    """The largest absolute value found anywhere in a network, and the layer that gave it."""

    largest: float
    layer: str

    @property
    def fits_fp16(self) -> bool:
        """Whether every value can be written in fp16."""
        return self.largest <= LARGEST

    @property
    def near_limit(self) -> bool:
        """Whether another frame might well exceed fp16."""
        return self.largest > NEAR_LARGEST_FP16


def to_fp16(network: bytes, *, half_input: bool = False) -> bytes:
    """Return an ONNX network with weights and activations in fp16.

    Parameters
    ----------
    network
        An ONNX network in fp32.
    half_input
        Take fp16 instead of float32; the output is float32 in any case.

    Raises
    ------
    ModelError
        The network cannot be converted.
    """
    from onnxruntime.transformers import float16

    model = onnx.load_from_string(network)
    outputs = [each.name for each in model.graph.output]
    kept = outputs if half_input else outputs + [each.name for each in model.graph.input]
    try:
        converted: Any = float16.convert_float_to_float16(
            model,
            keep_io_types=kept,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *KEPT_FP32],
        )
        _sort(converted.graph)
        onnx.checker.check_model(converted, full_check=True)
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the network cannot be written in fp16: {error}",
            "operators that exist in fp16",
            "use --precision fp32",
        ) from error
    return bytes(converted.SerializeToString(deterministic=True))


def activation_range(network: bytes, images: Sequence[NDArray[np.float32]]) -> Range:
    """Return the largest absolute value that any layer gives on ``images``, (1, C, Y, X) each."""
    found = Range(0.0, "")
    shown = exposed(network)
    for image in images:
        for layer, values in activations(shown, image):
            largest = float(np.abs(values).max(initial=0.0))
            if not largest <= found.largest:  # also where it is NaN
                found = Range(largest, layer)
    return found


def to_int8(
    network: bytes, images: Sequence[NDArray[np.float32]], *, symmetric: bool = False
) -> bytes:
    """Return the network quantised by Q/DQ pairs, calibrated on ``images``.

    Weights are INT8 per channel; activations UINT8 with a zero point, or INT8 without one where
    ``symmetric`` (TensorRT takes no other). The first and the last convolution keep fp32: they
    meet counts and decide the mask.

    Parameters
    ----------
    network
        An ONNX network in fp32.
    images
        Network inputs (1, C, Y, X), as varied as the frames to come. Every layer's output on all
        of them is held in memory at once.
    symmetric
        See above.

    Raises
    ------
    ModelError
        The network cannot be quantised.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load_from_string(network)
    _name_nodes(model.graph)
    layers = [n.name for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose")]
    reader = _reader(quantization.CalibrationDataReader, model.graph.input[0].name, images)
    kind = quantization.QuantType.QInt8
    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, ready, after = (Path(folder) / f"{name}.onnx" for name in ("in", "ready", "out"))
        onnx.save(model, before)
        try:
            quant_pre_process(str(before), str(ready), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(ready),
                str(after),
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                weight_type=kind,
                activation_type=kind if symmetric else quantization.QuantType.QUInt8,
                calibrate_method=quantization.CalibrationMethod.Percentile,
                nodes_to_exclude=[layers[0], layers[-1]] if layers else [],
                extra_options={
                    "ActivationSymmetric": symmetric,
                    # TensorRT takes no pair whose numbers are of 32 bits.
                    "QuantizeBias": not symmetric,
                    "CalibPercentile": CALIBRATION_PERCENTILE,
                },
            )
            onnx.checker.check_model(str(after))
        except Exception as error:  # its errors have no common base
            raise ModelError(
                f"the network cannot be quantised: {type(error).__name__}: {error}",
                "operators that ONNX Runtime quantises",
                "use --precision fp32 or bf16",
            ) from error
        return after.read_bytes()


def _reader(base: type, name: str, images: Sequence[NDArray[np.float32]]) -> Any:
    class Reader(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._left, None)
            return None if image is None else {name: image}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the quantiser's prints and warnings off stdout and stderr."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: what is left out of quantisation is named by it."""
    taken: set[str] = set()
    for place, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}"
        taken.add(node.name)


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes after those that feed them; the converter appends its casts at the end."""
    ready = {each.name for each in (*graph.input, *graph.initializer)} | {""}
    left, ordered = list(graph.node), []
    while left:
        now = [node for node in left if ready.issuperset(node.input)]
        if not now:
            break  # the checker says what is missing
        for node in now:
            ready.update(node.output)
        ordered += now
        left = [node for node in left if node not in now]
    del graph.node[:]
    graph.node.extend([*ordered, *left])
