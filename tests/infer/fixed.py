"""Engines of one input shape that run where there is no GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from segbatch.infer.engine.cpu.onnxruntime_engine import OnnxRuntimeEngine

if TYPE_CHECKING:
    from segbatch.infer.engine.made.artifact import Shape
    from segbatch.infer.engine.manifest import Model


def fixed_engine(model: Model, shape: Shape) -> OnnxRuntimeEngine:
    """Return an engine of ONNX Runtime on a copy of the network that takes ``shape`` alone."""
    network = onnx.load(model.file)
    for side, wanted in zip(network.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        side.dim_value = wanted
    del network.graph.value_info[:]
    for output in network.graph.output:
        output.type.tensor_type.ClearField("shape")
    file = model.file.with_name("fixed.onnx")
    onnx.save(network, file)
    engine = OnnxRuntimeEngine(file, 1)
    engine.input_shape = shape
    return engine
