"""Confidence intervals of the demonstration's measurements."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval (percentiles of 2,000 resamples) of a mean.

    Args:
        values: ``[n]``, one value for each text or picture.

    Example:
        >>> low, high = interval(np.array([0.0, 1.0, 2.0, 3.0]))
        >>> low < 1.5 < high
        True
    """
    drawn: Any = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
