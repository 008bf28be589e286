"""Every call of CUDA and TensorRT that is used is there, in what is installed here."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from segbatch.infer.engine.tensorrt import device, program
from segbatch.infer.engine.tensorrt.flavour import load
from tests.infer.rtx import needs_rtx


@pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None,
    reason="cuda-bindings is not installed (pip install 'segbatch[gpu]')",
)
def test_the_calls_of_cuda_are_there() -> None:
    """The driver's calls and flags by which memory is handled are names of cuda-bindings."""
    from cuda.bindings import driver

    text = Path(device.__file__).read_text(encoding="utf-8")
    calls = set(re.findall(r"driver\.(cu\w+)", text))
    flags = set(re.findall(r"\b(CU_[A-Z_]+|CUDA_[A-Z_]+)\b", text))
    known = {*dir(driver.CUstream_flags), *dir(driver.CUevent_flags), *dir(driver.CUresult)}

    assert len(calls) > 15
    assert {name for name in calls if not hasattr(driver, name)} == set()
    assert flags <= known


@needs_rtx
def test_the_calls_of_tensorrt_are_there() -> None:
    """What an engine is opened and run by are names of the library."""
    trt = load("tensorrt_rtx")
    text = Path(program.__file__).read_text(encoding="utf-8")
    kinds = (
        (r"self\._engine\.(\w+)", trt.ICudaEngine),
        (r"\bcontext\.(\w+)", trt.IExecutionContext),
        (r"\bconfig\.(\w+)", trt.IRuntimeConfig),
        (r"\bcompiled\.(\w+)", trt.IRuntimeCache),
        (r"\btrt\.(\w+)", trt),
        (r"self\._runtime\.(\w+)", trt.Runtime),
    )
    for pattern, owner in kinds:
        used = set(re.findall(pattern, text))
        assert used, pattern
        assert {name for name in used if not hasattr(owner, name)} == set()
