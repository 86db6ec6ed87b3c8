"""Means over pictures with bootstrap intervals; differences between engines are paired picture by picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
"""Resamples; more move the ends of an interval by less than 2 % of its width."""

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over pictures and the 95 % interval of where it would lie for other pictures of the same kind.

    Attributes:
        mean: over the pictures measured.
        low: lower end.
        high: upper end.
        pictures: how many.
    """

    mean: float
    low: float
    high: float
    pictures: int


def _resampled(values: NDArray[np.float64]) -> Estimate:
    count = len(values)
    # The seed is fixed, so the same numbers give the same interval, and every engine sees the same resamples.
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, count, (DRAWS, count))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values.mean()), float(low), float(high), count)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and percentile-bootstrap interval (Efron 1979) over pictures; at least one value."""
    return _resampled(np.asarray(values, dtype=np.float64))


def difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Mean of the picture-by-picture differences `values - others` and its interval.

    Pairing takes out what all methods share, that some pictures are harder: this interval is often ten times narrower
    than those of the two means.
    """
    return _resampled(np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64))
