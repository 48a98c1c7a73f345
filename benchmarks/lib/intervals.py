"""Confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from tools.results import Estimate

RESAMPLES = 2000


def interval(units: np.ndarray, statistic: Callable[..., Any] = np.mean) -> Estimate:
    """A statistic of independent units, by default their mean, with its 95% bootstrap interval.

    The ends are percentiles of the statistic over 2,000 resamples of the units.
    """
    return _bootstrapped((units,), statistic, vectorized=statistic is np.mean)


def score_interval(scores: np.ndarray) -> Estimate:
    """The mean of scores with its 95% interval: Wilson's if they all are 0 or 1, otherwise by bootstrap.

    Resamples of equal units are all equal, so 0 of 7 would be 0 for certain. Not for differences of scores, which 0
    bounds on neither side.
    """
    if not np.isin(scores, (0, 1)).all():
        return interval(scores)
    share = stats.binomtest(int(scores.sum()), len(scores)).proportion_ci(method="wilson")
    return Estimate(float(scores.mean()), float(share.low), float(share.high))


def interval_of(samples: Sequence[np.ndarray], statistic: Callable[..., Any]) -> Estimate:
    """A statistic of several samples, with an argument for each and `axis`; each is resampled on its own."""
    return _bootstrapped(samples, statistic, vectorized=True)


def _bootstrapped(samples: Sequence[np.ndarray], statistic: Callable[..., Any], *, vectorized: bool) -> Estimate:
    drawn: Any = stats.bootstrap(
        samples, statistic, n_resamples=RESAMPLES, vectorized=vectorized, method="percentile", rng=0
    )
    value = statistic(*samples, axis=-1) if vectorized else statistic(*samples)
    return Estimate(float(value), float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))
