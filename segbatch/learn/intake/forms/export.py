"""A torch module becomes an ONNX graph whose batch, Y and X are free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segbatch.learn.intake.finish import running
from segbatch.learn.intake.graph import vetted
from segbatch.learn.intake.look import find_sizes, same_answers
from segbatch.learn.onnx_form import quietly, traced

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segbatch.learn.intake.facts import Run
    from segbatch.learn.intake.look import Sizes

# The exporter for TorchScript knows no later one.
SCRIPT_OPSET = 18


def module_to_onnx(module: Any, told: str) -> Any:
    """Export a module of Python code that this program trusts.

    Raises
    ------
    ModelError
        It takes no images of free size, or its ONNX form answers differently.
    """
    channels, sizes = find_sizes(_shapes(module), None, told)

    def side(name: str) -> Any:
        free = torch.export.Dim(name, min=1 + sizes.first // sizes.stride, max=65536)
        return sizes.stride * free + sizes.residue if sizes.residue else sizes.stride * free

    example = torch.zeros(2, channels, *_example_sides(sizes))
    model = traced(module, example, side("rows"), side("columns"), "answer", told)
    return checked(model, module, channels, sizes, told)


def _example_sides(sizes: Sizes) -> tuple[int, int]:
    return sizes.first + 2 * sizes.stride, sizes.first + 3 * sizes.stride


def checked(model: Any, module: Any, channels: int, sizes: Sizes, told: str) -> Any:
    """Return the vetted graph after comparing it with its module on noise of three shapes."""
    model = vetted(model, told)
    near, far = _example_sides(sizes)
    shapes: list[tuple[int, ...]] = [(1, channels, near, far), (2, channels, sizes.first, near)]
    with running(model) as run:
        same_answers(runner(module), run, shapes, told)
    return model


def runner(module: Any) -> Run:
    """Return a function of arrays that runs a module."""

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            answer = module(torch.from_numpy(image))
        return np.asarray(answer.float().numpy())

    return run


def _shapes(module: Any) -> Any:
    """Return what ``find_sizes`` asks."""

    def shapes(channels: int, y: int, x: int) -> tuple[int, ...] | None:
        try:
            with torch.inference_mode():
                answer = module(torch.zeros(1, channels, y, x))
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
            return None
        return tuple(answer.shape) if isinstance(answer, torch.Tensor) else None

    return shapes


def script_to_onnx(script: Any, told: str) -> Any:
    """Export a TorchScript module; the exporter by tracing refuses these."""
    import io

    channels, sizes = find_sizes(_shapes(script), None, told)
    example = torch.zeros(2, channels, *_example_sides(sizes))
    _without_lists(script.forward.graph)
    content = io.BytesIO()
    axes = {0: "n", 2: "y", 3: "x"}
    quietly(
        told,
        script,
        (example,),
        content,
        dynamo=False,
        opset_version=SCRIPT_OPSET,
        input_names=["image"],
        output_names=["answer"],
        dynamic_axes={"image": axes, "answer": axes},
    )
    import onnx

    from segbatch.learn.intake.forms.sequences import without_sequences

    model = without_sequences(onnx.load_model_from_string(content.getvalue()))
    return checked(model, script, channels, sizes, told)


def _without_lists(graph: Any) -> None:
    """Write out calls and lists: behind a list, the exporter does not know a tensor's axes.

    Interpolation has to be recognised first, as the exporter itself does: written out, it is
    hundreds of operators.
    """
    torch._C._jit_pass_onnx_function_substitution(graph)
    torch._C._jit_pass_inline(graph)
    torch._C._jit_pass_remove_mutation(graph)
    torch._C._jit_pass_peephole(graph)
