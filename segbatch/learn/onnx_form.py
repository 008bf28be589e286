"""A torch module becomes an ONNX graph."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch

from segbatch.errors import ModelError

OPSET = 20


def traced(module: Any, example: Any, rows: Any, columns: Any, output: str, told: str) -> Any:
    """Return the ONNX graph of a module, its batch free.

    Parameters
    ----------
    module
        A torch module in evaluation mode.
    example
        (N, C, Y, X) tensor, N at least 2.
    rows, columns
        How free Y and X are, expressions of ``torch.export.Dim``.
    output
        The output's name; the input is ``image``.
    told
        The module's name, for errors.

    Raises
    ------
    ModelError
        The exporter cannot write it.
    """
    free = {0: torch.export.Dim("batch", min=1, max=1024), 2: rows, 3: columns}
    program = quietly(
        told,
        module,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=[output],
        dynamic_shapes=(free,),
        verbose=False,
    )
    return program.model_proto


def quietly(told: str, *arguments: Any, **options: Any) -> Any:
    """Return what ``torch.onnx.export`` gives for these arguments.

    Raises
    ------
    ModelError
        It raised whatever it met.
    """
    # The exporters warn and log of their own internals.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(*arguments, **options)
        except MemoryError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{told}: cannot be written as ONNX: {said}",
                "a network of standard operators",
                "export it as ONNX where it was trained, and give that file",
            ) from error
