"""What the demonstration compares: confidence intervals, and a map that should do nothing in particular."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..maps import ActMap
from ..transport import Transport


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
    """The map with the displacements of each site shuffled over its channels: as large, but in no direction.

    What is shuffled are slopes and the shifts of the source means. At each site, the root mean square displacement of
    the source values stays the same; of a map that does not tell their statistics, slopes and offsets are shuffled.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = {
        site: _shuffled(transport, torch.randperm(transport.channels, generator=generator))
        for site, transport in act_map.transports.items()
    }
    return replace(act_map, transports=shuffled)


def _shuffled(transport: Transport, order: Tensor) -> Transport:
    if transport.statistics is None:
        return replace(transport, omega=transport.omega[..., order], beta=transport.beta[..., order])
    mean, deviation = transport.statistics.source_mean, transport.statistics.source_std

    def size(slope: Tensor, shift: Tensor) -> Tensor:
        return ((slope * deviation).square() + shift.square()).mean(-1, keepdim=True).sqrt()

    slope = transport.omega - 1
    shift = slope * mean + transport.beta
    scale = size(slope, shift) / size(slope[..., order], shift[..., order]).clamp(min=torch.finfo(slope.dtype).tiny)
    slope, shift = scale * slope[..., order], scale * shift[..., order]
    return replace(transport, omega=1 + slope, beta=shift - slope * mean, statistics=None)
