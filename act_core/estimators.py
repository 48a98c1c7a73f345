"""Slopes of the per-channel estimators, see `act_core.transport.fit_transport`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .coupling import coupling
from .settings import ChannelEstimator


def slopes(a: Tensor, b: Tensor, std_a: Tensor, std_b: Tensor, flat: Tensor, estimator: ChannelEstimator) -> Tensor:
    """Slopes ``[channels]`` for centred values; 1 for channels that are constant.

    Args:
        a, b: source values ``[n, channels]`` and target values ``[m, channels]``, less their means.
        std_a, std_b: their population deviations ``[channels]``.
        flat: bool ``[channels]``, the constant channels.
        estimator: of the transport.
    """
    if estimator in ("mean", "project"):
        return torch.ones_like(std_a)
    # Rounding and ties must not push the slope beyond its Cauchy-Schwarz bounds.
    steepest = std_b / std_a.masked_fill(flat, 1.0)
    if estimator == "gaussian":
        omega = steepest
    else:
        slope = _coupled_covariance(a, b) / std_a.square().masked_fill(flat, 1.0)
        omega = torch.minimum(slope.clamp(min=0), steepest)
    return omega.masked_fill(flat, 1.0)


def _coupled_covariance(a: Tensor, b: Tensor) -> Tensor:
    """Covariance under the sorted coupling of centred values ``[n, channels]`` and ``[m, channels]``."""
    n, m = len(a), len(b)
    a, b = _sorted(a), _sorted(b)
    if n == m:
        return (a * b).mean(0)
    paired = coupling(n, m)
    first, second = paired.first.to(a.device), paired.second.to(a.device)
    widths = paired.widths.to(a) / (n * m)
    return widths @ (a[first] * b[second])


def _sorted(values: Tensor) -> Tensor:
    """Each column in ascending order; on a CPU numpy's sort is several times as fast as torch's."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=0))
    return values.sort(0).values
