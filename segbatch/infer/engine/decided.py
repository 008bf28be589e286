"""What an engine says whose graph ends in the mask instead of in logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The outputs of such a graph, in the order of ``Decided``.
DECIDED = ("mask", "confidence", "entropy")


@dataclass(frozen=True, slots=True)
class Decided:
    """Masks of one batch, valid only while the request is lent.

    Attributes
    ----------
    mask
        (N, Y, X) uint8, class indices.
    confidence, entropy
        (N, Y // stride, X // stride) float32: means over blocks of stride x stride pixels of the
        winning class's probability and of the entropy of the class probabilities, bits.
    """

    mask: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    entropy: NDArray[np.float32]
