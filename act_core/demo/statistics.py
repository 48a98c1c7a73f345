"""What the demonstration compares: confidence intervals, and a map that should do nothing in particular."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from ..maps import ActMap


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


class Measured(NamedTuple):
    """The mean of a measure over texts or pictures, and its 95% bootstrap interval.

    Example:
        >>> print(f"{Measured.of([0.5, 0.5]):.2f}")
        0.50 [0.50, 0.50]
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Measured:
        """From one value for each text or picture."""
        return cls(float(np.mean(values)), *interval(np.asarray(values)))

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def permuted(act_map: ActMap, seed: int = 0) -> ActMap:
    """The map with the coefficients of each site shuffled over its channels: the same sizes, no direction."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = {
        site: replace(transport, omega=transport.omega[..., order], beta=transport.beta[..., order], statistics=None)
        for site, transport in act_map.transports.items()
        for order in (torch.randperm(transport.channels, generator=generator),)
    }
    return replace(act_map, transports=shuffled)
