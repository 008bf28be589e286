"""What is known of a network beside its graph, and where each part of it came from."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from segbatch.infer.engine.manifest import Normalisation, ZScore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

Activation = Literal["none", "sigmoid", "softmax"]
LONGEST_NAME_BYTES = 180  # of the 255 that file systems take; those of engines are longer
NAME = "letters, digits, dot, dash and underscore"


def name_of(text: str) -> str:
    """Return a model's name out of any text: ``NAME``, of any script, as NFC; ``_`` for the rest.

    Files are called after it.
    """
    safe = "".join(
        each if each in "._-" or unicodedata.category(each)[0] in "LMN" else " "
        for each in unicodedata.normalize("NFC", text)
    )
    short = "_".join(safe.split()).encode()[:LONGEST_NAME_BYTES].decode(errors="ignore")
    return short.strip("._") or "model"


class Wishes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the caller says of a network; None where the file or a look at it shall tell.

    ``output`` names one of several outputs, ``channel`` one of the channels of a network that
    answers several questions at once.
    """

    arch: str | None = None
    name: str | None = None
    classes: list[str] | None = None
    normalisation: Normalisation | None = None
    threshold: float | None = None
    output: str | None = None
    channel: int | None = None


@dataclass
class Facts:
    """What is known of one network; ``assumed`` has a sentence for whatever is not.

    ``outside`` is the activation that the source says is applied to the network's output;
    ``before`` are constant steps between normalisation and network (see ``edit.prepend``);
    ``cut`` that it is cut to 0 and 1, and ``cutoff`` from which of its values on there is an
    object. ``activated`` is found: whether what the source
    calls its output are probabilities.
    """

    kind: str
    name: str
    files: list[Path]
    classes: list[str] | None = None
    normalisation: Normalisation | None = None
    threshold: float | None = None
    outside: Activation = "none"
    cut: bool = False
    cutoff: float | None = None
    activated: bool = False
    before: list[Step] = field(default_factory=list)
    pixel_size_um: float | None = None
    command: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)

    def settle(self, wishes: Wishes) -> None:
        """Let what the caller said win over what the source said."""
        self.name = wishes.name or self.name
        self.classes = wishes.classes or self.classes
        self.normalisation = wishes.normalisation or self.normalisation
        self.threshold = wishes.threshold if wishes.threshold is not None else self.threshold

    def normalisation_or_assumed(self) -> Normalisation:
        """Return the normalisation, assumed to be that of the frame's own mean and spread."""
        if self.normalisation is None:
            self.normalisation = ZScore()
            self.assumed.append(
                "normalisation: each frame's own mean and standard deviation (--normalisation)"
            )
        return self.normalisation

    def classes_or_assumed(self, count: int) -> list[str]:
        """Return the names of ``count`` classes, numbered where nothing names them."""
        if self.classes is None:
            self.classes = ["object"] if count == 1 else [f"class{i + 1}" for i in range(count)]
            self.assumed.append(f"class names: {', '.join(self.classes)} (--class)")
        return self.classes


@dataclass(frozen=True)
class Step:
    """One constant step on the input: ``scale`` and ``offset`` for each channel, or a ``clip``.

    ``value * scale + offset``, then cut to ``low`` and ``high`` where those are given.
    """

    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    low: float | None = None
    high: float | None = None
