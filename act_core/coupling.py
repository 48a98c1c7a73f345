"""The optimal coupling of two sets of one-dimensional values, see `act_core.transport`.

The quantile function of n values is a step function; two of them, of n and of m values, are coupled on their common
steps (for n = m: sorted value to sorted value).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor


class Coupling(NamedTuple):
    """Which values of two sorted sets are coupled, one entry for each common step of their quantile functions.

    Attributes:
        first, second: indices ``[steps]`` of the sorted values.
        widths: of the steps, in units of ``1 / (n m)``: whole numbers that add up to ``n m``.

    Example:
        >>> coupling(2, 3)
        Coupling(first=tensor([0, 0, 1, 1]), second=tensor([0, 1, 1, 2]), widths=tensor([2, 1, 1, 2]))
    """

    first: Tensor
    second: Tensor
    widths: Tensor


def coupling(n: int, m: int) -> Coupling:
    """The coupling of n sorted values with m sorted values."""
    # Both step functions jump at multiples of 1/n and 1/m: counted in units of 1/(n m) these are whole numbers.
    starts = torch.cat([torch.arange(0, n * m, m), torch.arange(0, n * m, n)])
    edges = cast("Tensor", starts.unique())
    return Coupling(edges // m, edges // n, torch.diff(edges, append=edges.new_tensor([n * m])))


class TargetQuantiles:
    """The values of a target, to which the distance of any n source values can be taken.

    The squared Wasserstein-2 distance of n sorted values to the target is their mean squared distance to the target's
    means over each n-th of its quantile function, plus the spread inside these n-ths, which does not depend on them.

    Args:
        target: ``[m, channels]``.
        n: number of source values.

    Example:
        >>> TargetQuantiles(torch.tensor([[0.0], [1.0]]), 2).distances(torch.tensor([[3.0], [0.0]]))
        tensor([2.])
    """

    def __init__(self, target: Tensor, n: int) -> None:
        paired = coupling(n, len(target))
        ordered = target.sort(0).values[paired.second.to(target.device)]
        weights = (paired.widths / len(target)).to(target)
        n_ths = paired.first.to(target.device)
        self._means = target.new_zeros(n, target.shape[1]).index_add_(0, n_ths, weights[:, None] * ordered)
        inside = weights[:, None] * (ordered - self._means[n_ths]).square()
        self._spread = inside.sum(0) / n

    def distances(self, source: Tensor) -> Tensor:
        """Squared Wasserstein-2 distances ``[channels]`` of source values ``[n, channels]``, for gradients, too."""
        return (source.sort(0).values - self._means).square().mean(0) + self._spread
