"""Confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from tools.results import Estimate

RESAMPLES = 2000


def interval(units: np.ndarray, statistic: Callable[..., Any] = np.mean) -> Estimate:
    """A statistic of independent units, by default their mean, with its 95% interval.

    The ends are percentiles of the statistic over 2,000 resamples of the units (bootstrap). The mean of units that are
    all 0 or 1 is a share, and gets Wilson's interval: resamples of equal units would all be equal.
    """
    if statistic is np.mean and np.isin(units, (0, 1)).all():
        share = stats.binomtest(int(units.sum()), len(units)).proportion_ci(method="wilson")
        return Estimate(float(units.mean()), float(share.low), float(share.high))
    drawn: Any = stats.bootstrap(
        (units,), statistic, n_resamples=RESAMPLES, vectorized=statistic is np.mean, method="percentile", rng=0
    )
    return Estimate(
        float(statistic(units)), float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
    )
