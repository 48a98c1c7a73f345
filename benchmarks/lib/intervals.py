"""Confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from tools.results import Estimate

RESAMPLES = 2000


def interval(units: np.ndarray, statistic: Callable[..., Any] = np.mean) -> Estimate:
    """A statistic of independent units, by default their mean, with its 95% bootstrap interval.

    The ends are percentiles of the statistic over 2,000 resamples of the units.
    """
    drawn: Any = stats.bootstrap(
        (units,), statistic, n_resamples=RESAMPLES, vectorized=statistic is np.mean, method="percentile", rng=0
    )
    return Estimate(
        float(statistic(units)), float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
    )
