"""Engines on NVIDIA GPUs, by full TensorRT or TensorRT for RTX."""

from segbatch.infer.engine.tensorrt.builder import Source, build
from segbatch.infer.engine.tensorrt.driver import why_unusable
from segbatch.infer.engine.tensorrt.fitting import build_largest
from segbatch.infer.engine.tensorrt.progress import Progress
from segbatch.infer.engine.tensorrt.runtime import TensorRtEngine

__all__ = ["Progress", "Source", "TensorRtEngine", "build", "build_largest", "why_unusable"]
