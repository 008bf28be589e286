"""Pre- and post-processing of a package, as a normalisation, constants in the graph, and an output.

What a frame's own statistics decide becomes the manifest's normalisation; constant steps after
it go into the graph; a constant scale before it is folded into it. Whatever is none of these is
refused by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segbatch.errors import ModelError
from segbatch.infer.engine.manifest import Fixed, ScaleRange, ZScore
from segbatch.learn.intake.facts import Step

if TYPE_CHECKING:
    from segbatch.learn.intake.bioimageio.describe import Description, Operation
    from segbatch.learn.intake.facts import Facts

FLOATS = ("float32", "float64")
LARGEST = 1e30  # a product of two still is a float64


def honour_before(told: Description, facts: Facts) -> None:
    """Put a package's pre-processing into ``facts``.

    Raises
    ------
    ModelError
        A step is not known, or cannot be done as it is described.
    """
    steps: list[Step] = []
    statistics: ZScore | ScaleRange | None = None
    for operation in told.input.steps:
        given, name = operation.given, operation.name
        if name == "ensure_dtype" and given.get("dtype") in FLOATS:
            continue
        fixed = given.get("mode") == "fixed" or (
            name == "zero_mean_unit_variance" and "mode" not in given and "mean" in given
        )
        if name in ("zero_mean_unit_variance", "scale_range") and not fixed:
            if statistics is not None:
                raise _refused(told, operation, "one normalisation by a frame's own statistics")
            statistics = _statistics(told, operation, steps)
            steps = []
        else:
            steps.append(_constant(told, operation))
    if statistics is None:
        facts.normalisation, facts.before = _folded(steps)
    else:
        facts.normalisation, facts.before = statistics, steps


def _statistics(told: Description, operation: Operation, before: list[Step]) -> ZScore | ScaleRange:
    """Return a normalisation by a frame's statistics, with constant scales before it folded in."""
    given = operation.given
    if given.get("mode", "per_sample") != "per_sample":
        raise _refused(told, operation, "mode per_sample or fixed: there is no data set here")
    if given.get("reference_tensor") not in (None, told.input.name):
        raise _refused(told, operation, "statistics of the frame itself")
    stated = given.get("axes") or ("channel", "y", "x")
    axes = set(map(str, stated if isinstance(stated, str | list | tuple) else [stated]))
    joint = bool({"c", "channel"} & axes)
    if not {"x", "y"} <= axes:
        raise _refused(told, operation, "statistics over y and x")
    if not joint and len(told.input.channel_names) == 3:
        raise _refused(told, operation, "statistics of all channels together")
    scale = 1.0
    for step in before:
        if (
            len(step.scale) != 1
            or len(step.offset) != 1
            or step.scale[0] <= 0
            or (step.low is not None or step.high is not None)
        ):
            raise _refused(told, operation, "nothing but one positive scale before it")
        scale *= step.scale[0]
    if not 1 / LARGEST < scale < LARGEST:
        raise _refused(told, operation, "scales before it that come to a finite number")
    epsilon = _real(told, operation, given.get("eps", 1e-6)) / scale
    if operation.name == "zero_mean_unit_variance":
        return ZScore(epsilon)
    low = _real(told, operation, given.get("min_percentile", 0))
    high = _real(told, operation, given.get("max_percentile", 100))
    if not 0 <= low < high <= 100:
        raise _refused(told, operation, "percentiles from 0 to 100, the lower one first")
    return ScaleRange(low, high, epsilon)


def _constant(told: Description, operation: Operation) -> Step:
    given, name = operation.given, operation.name
    if name == "scale_linear":
        return _affine(told, operation, given.get("gain", 1.0), given.get("offset", 0.0))
    if name == "clip" and not {"min_percentile", "max_percentile"} & set(given):
        low, high = given.get("min"), given.get("max")
        return Step(low=_number(told, operation, low), high=_number(told, operation, high))
    if name in ("fixed_zero_mean_unit_variance", "zero_mean_unit_variance"):
        # Format 0.4 adds epsilon to a fixed deviation, 0.5 does not.
        added = given.get("eps", 1e-6) if name == "zero_mean_unit_variance" else 0.0
        epsilon = _real(told, operation, added)
        means = [_real(told, operation, each) for each in _list(given.get("mean"))]
        spreads = [_real(told, operation, s) + epsilon for s in _list(given.get("std"))]
        if len(means) != len(spreads) or min(spreads, default=0.0) <= 0.0:
            raise _refused(told, operation, "a mean and a std above zero for each channel")
        scales = [1.0 / each for each in spreads]
        offsets = [-m * s for m, s in zip(means, scales, strict=True)]
        return _affine(told, operation, scales, offsets)
    raise _refused(
        told,
        operation,
        "ensure_dtype to float, zero_mean_unit_variance, fixed_zero_mean_unit_variance, "
        "scale_range, scale_linear or clip",
    )


def _affine(told: Description, operation: Operation, scale: Any, offset: Any) -> Step:
    axis = operation.given.get("axis", "channel")
    scales = tuple(_real(told, operation, each) for each in _list(scale))
    offsets = tuple(_real(told, operation, each) for each in _list(offset))
    if axis != "channel" or {len(scales), len(offsets)} - {1, 3}:
        raise _refused(told, operation, "one number, or one for each of three channels")
    if min(map(abs, scales)) < 1 / LARGEST:
        raise _refused(told, operation, "finite numbers, and no scale of zero")
    return Step(scales, offsets)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _number(told: Description, operation: Operation, value: Any) -> float | None:
    return None if value is None else _real(told, operation, value)


def _real(told: Description, operation: Operation, value: Any) -> float:
    """Return a finite number, refusing the step for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -LARGEST < value < LARGEST:
        raise _refused(told, operation, "finite numbers")
    return float(value)


def _folded(steps: list[Step]) -> tuple[Fixed, list[Step]]:
    """Return the leading scale as a normalisation, and the steps that are left."""
    if not steps or len(steps[0].scale) != 1 or len(steps[0].offset) != 1:
        return Fixed(), steps
    first, rest = steps[0], steps[1:]
    if first.low is not None or first.high is not None:
        return Fixed(), steps
    return Fixed(-first.offset[0] / first.scale[0], first.scale[0]), rest


def honour_after(told: Description, facts: Facts) -> None:
    """Put a package's post-processing into ``facts``.

    Raises
    ------
    ModelError
        A step is not known, or does not lead to a mask's probabilities.
    """
    for operation in told.output.steps:
        given, name = operation.given, operation.name
        if name == "ensure_dtype" and (given.get("dtype") in FLOATS or facts.cutoff is not None):
            continue
        if facts.cutoff is not None:
            raise _refused(told, operation, "nothing after binarize")
        if name in ("sigmoid", "softmax") and facts.outside == "none":
            if name == "softmax" and given.get("axis", "channel") not in ("channel", "c"):
                raise _refused(told, operation, "softmax over channels")
            facts.outside = "sigmoid" if name == "sigmoid" else "softmax"
        elif name == "binarize" and not isinstance(given.get("threshold"), list):
            facts.cutoff = _real(told, operation, given.get("threshold"))
        elif name == "clip" and _around(told, operation):
            facts.cut = True
        else:
            raise _refused(
                told,
                operation,
                "sigmoid or softmax once, binarize with one threshold, clip around 0 to 1, "
                "ensure_dtype",
            )


def _around(told: Description, operation: Operation) -> bool:
    """Return whether a clip leaves 0 to 1 alone."""
    low, high = (operation.given.get(each, e) for each, e in (("min", 0), ("max", 1)))
    return _real(told, operation, low) <= 0 and _real(told, operation, high) >= 1


def _refused(told: Description, operation: Operation, wanted: str) -> ModelError:
    return ModelError(
        f"{told.told}: step {operation.name} with {operation.given}",
        wanted,
        "take in its ONNX file by itself, with --normalisation as it needs",
    )
