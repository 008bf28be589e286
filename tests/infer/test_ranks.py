"""Medians and quantiles: the same as NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from segbatch.infer.quality.ranks import median, median_of_rows, quantile


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 1000, 1001])
@pytest.mark.parametrize("dtype", ["u2", "f4", "f8"])
def test_ranks_are_those_of_numpy(count: int, dtype: str) -> None:
    """Median and quantiles of any number of values are NumPy's to rounding."""
    rng = np.random.default_rng(count)
    values = (1000 * rng.random(count)).astype(dtype)
    assert median(values) == pytest.approx(np.median(values), rel=1e-6)
    assert median(values.tolist()) == pytest.approx(np.median(values), rel=1e-6)
    for fraction in (0.0, 0.1, 0.75, 0.97, 1.0):
        wanted = np.quantile(values, fraction)
        assert quantile(values, fraction) == pytest.approx(wanted, rel=1e-6)
    rows = rng.random((count, 5)).astype(np.float32)
    assert median_of_rows(rows) == pytest.approx(np.median(rows, axis=0), rel=1e-6)
