"""Projections: how much of the difference between source and target an activation shows.

A projection takes a difference away only as far as it is there, where the shift of a mean adds its opposite to
everything: ``T(a) = a + amount(a) * beta`` with ``beta`` from the source's mean to the target's. The amount is 1 at the
mean of the source, and 0 at the mean of the target and on its far side, so that ``T(a)`` never has less of the
direction than the target has. Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction" (2024),
take away all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .sites import Layout


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear function of an activation, cut off at 0.

    Attributes:
        weight: float32 ``[channels]``.
        bias: added to the product.

    Example:
        >>> Projection(torch.tensor([0.5, 0.0]), 0.0).amount(torch.tensor([[2.0, 5.0], [-1.0, 5.0]]))
        tensor([1., 0.])
    """

    weight: Tensor
    bias: float

    def amount(self, a: Tensor) -> Tensor:
        """How often the difference is in activations ``[..., channels]``: ``max(weight . a + bias, 0)``."""
        return amounts(a, "vector", self.packed()).squeeze(-1)

    def packed(self) -> Tensor:
        """Weight and bias in one tensor, float32 ``[channels + 1]``, as files and live models hold them."""
        return torch.cat([self.weight, self.weight.new_tensor([self.bias])])

    @classmethod
    def unpacked(cls, packed: Tensor) -> Projection:
        """The projection that `packed` was made from."""
        return cls(packed[:-1].clone(), float(packed[-1]))


def amounts(x: Tensor, layout: Layout, packed: Tensor) -> Tensor:
    """The amount at each token or position of an activation, in float32, with 1 channel in place of all."""
    packed = packed.to(x.device)
    weight, bias = packed[:-1], packed[-1]
    if layout == "spatial":
        found = (x * weight.view(-1, *[1] * (x.ndim - 2))).sum(1, keepdim=True)
    else:
        # Not a matrix product, which autocast and TF32 would round.
        found = (x.float() * weight).sum(-1, keepdim=True)
    return (found.float() + bias).clamp(min=0)


def fit_projection(source_mean: Tensor, source_std: Tensor, target_mean: Tensor, eps: float) -> Projection:
    """The projection from the mean of the source to that of the target, ``[channels]`` each.

    If no channel shifts by more than rounding, the direction of the shift is arbitrary, and the projection finds
    nothing.

    Args:
        source_mean, source_std, target_mean: of the pooled values.
        eps: of the dtype of the activations.
    """
    shift = target_mean.double() - source_mean.double()
    sizes = (source_mean.double().square() + source_std.double().square()).sqrt()
    # A mean may be far smaller than the tokens in it, but seldom in most channels.
    differs = (shift.abs() > 4 * eps * sizes.clamp(min=float(sizes.median()))).any()
    length = shift.square().sum() * differs
    weight = torch.where(length > 0, -shift / length.clamp(min=torch.finfo(torch.float64).tiny), 0)
    bias = -weight @ target_mean.double()
    with torch.inference_mode(False):  # it outlives the caller's mode
        return Projection(weight.detach().to("cpu", torch.float32, copy=True), float(bias))
