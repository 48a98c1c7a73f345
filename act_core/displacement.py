"""Applies the coefficients of a transport to activations, for every layout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .gates import openness, row_means
from .projections import amounts
from .settings import Spatial
from .sites import Layout


def displace(a: Tensor, gain: Tensor, offset: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """``a + (gain * a + offset)``; with an interval, only for values inside ``[low, high]``.

    The coefficients broadcast against `a` and take its dtype and device. The displacement is rounded before it
    is added, so half-precision activations keep their precision: the slope, which is near 1, is never rounded itself.

    Example:
        >>> displace(torch.tensor([1.0, 2.0]), torch.tensor(0.5), torch.tensor(1.0))
        tensor([2.5000, 4.0000])
    """
    return displacement(a, gain, offset, low, high).add_(a)


def displacement(
    a: Tensor, gain: Tensor, offset: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    """What `displace` adds: ``gain * a + offset``, and 0 outside ``[low, high]``."""
    cast = (None if edge is None else edge.to(a) for edge in (low, high))
    return _displacement(a, gain.to(a), offset.to(a), *cast)


def displace_alike(
    a: Tensor, gain: Tensor, offset: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    """`displace` for coefficients that have the dtype and the device of `a`.

    Example:
        >>> displace_alike(torch.tensor([1.0, 2.0]), torch.tensor(0.5), torch.tensor(1.0), *torch.tensor([0.0, 1.5]))
        tensor([2.5000, 2.0000])
    """
    return _displacement(a, gain, offset, low, high).add_(a)


def _displacement(a: Tensor, gain: Tensor, offset: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    if low is None or high is None:
        return torch.addcmul(offset, a, gain)
    if torch.is_grad_enabled():
        return torch.where((a >= low) & (a <= high), torch.addcmul(offset, a, gain), 0)
    # The same values, five times as fast on a CPU, whose kernels for comparisons and selections are slow: in place, a
    # comparison returns 0 and 1 in the dtype of its tensor. What is clamped is finite, so nothing times 0 is NaN.
    clamped = torch.clamp(a, low, high)
    moved = torch.addcmul(offset, clamped, gain)
    return moved.mul_(clamped.eq_(a))


def displace_at(
    x: Tensor,
    layout: Layout,
    spatial: Spatial,
    gain: Tensor,
    offset: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    gate: Tensor | None = None,
    present: Tensor | None = None,
    projection: Tensor | None = None,
) -> Tensor:
    """Displace an activation of the given layout by coefficients ``[channels]``, see `displace`.

    Feature maps ``[rows, channels, ...]`` follow the ``shift`` rule, ``x + (T(mean) - mean)`` with the mean over all
    positions (the paper's), or the ``pointwise`` rule, which maps every position. With a gate, packed as in
    `act_core.gates.Gate.packed`, each row is displaced only as far as the gate is open for its mean; `present` is the
    mask of the tokens that it reads, bool ``[rows, tokens]``, or None for all. With a projection, packed as well, each
    token or position is displaced by its amount times as far.

    Example:
        >>> x = torch.tensor([[[[1.0, 3.0]]]])
        >>> displace_at(x, "spatial", "shift", torch.tensor([1.0]), torch.tensor([0.0]))
        tensor([[[[3., 5.]]]])
    """
    if layout == "spatial":
        shape = (-1, *[1] * (x.ndim - 2))
        gain, offset = gain.view(shape), offset.view(shape)
        low, high = (None if edge is None else edge.view(shape) for edge in (low, high))
    shifts = layout == "spatial" and spatial == "shift"
    mean = row_means(x, layout, present) if shifts or gate is not None else x
    if gate is not None:
        # The coefficients of each row are smaller than its activation.
        opening = openness(mean.flatten(1), gate).view(-1, *[1] * (x.ndim - 1))
        gain, offset = gain.to(opening) * opening, offset.to(opening) * opening
    read = mean if shifts else x
    moved = displacement(read, gain, offset, low, high)
    if projection is not None:
        moved = moved * amounts(read, layout, projection).to(moved.dtype)
    return moved.add_(x) if moved.dtype == x.dtype and not shifts else x + moved.to(x.dtype)


def displace_tokens(x: Tensor, tokens: slice | None, move: Callable[[Tensor], Tensor]) -> Tensor:
    """`x` ``[rows, tokens, channels]`` with only some tokens displaced.

    Args:
        x: activation, of any layout if `tokens` is None.
        tokens: which of them, see `act_core.sites.Segment`; None for everything.
        move: displaces these.

    Example:
        >>> displace_tokens(torch.ones(1, 3, 1), slice(0, 2), lambda part: part * 2).flatten()
        tensor([2., 2., 1.])
    """
    if tokens is None:
        return move(x)
    return torch.cat([x[:, : tokens.start], move(x[:, tokens]), x[:, tokens.stop :]], 1)


def has_layout(x: Tensor, layout: Layout, channels: int) -> bool:
    """Whether an activation has a layout, with this number of channels."""
    if not x.is_floating_point() or (x.ndim != 2 if layout == "vector" else x.ndim < 3):
        return False
    return x.shape[1 if layout == "spatial" else -1] == channels
