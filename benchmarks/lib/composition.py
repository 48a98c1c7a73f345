"""Judges pictures by colour and edges, in styles that the judge of styles does not know."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .pictures import kept


def statistics(images: Tensor) -> Tensor:
    """Colour and edges of uint8 pictures ``[n, 12]``: means and deviations of the channels, and of their steps."""
    x = images.float() / 255
    flat = x.flatten(2)
    across, down = x.diff(dim=3).abs().flatten(2).mean(2), x.diff(dim=2).abs().flatten(2).mean(2)
    return torch.cat([flat.mean(2), flat.std(2), across, down], 1)


def edges_kept(drawn: Tensor, unsteered: Tensor) -> float:
    """How much of the composition of uint8 pictures is kept: 1 is all of it, 0 as much as another concept shares."""
    one, other = edges(drawn), edges(unsteered)
    return float(kept(one, other).mean())


def edges(images: Tensor) -> Tensor:
    """Blurred edges of pictures ``[n, features]``, centred, of length 1: their products are correlations."""
    grey = images.float().mean(1, keepdim=True)
    across, down = functional.pad(grey.diff(dim=3), (0, 1)), functional.pad(grey.diff(dim=2), (0, 0, 0, 1))
    found = functional.avg_pool2d((across.square() + down.square()).sqrt(), 8, 4).flatten(1)
    return functional.normalize(found - found.mean(1, keepdim=True), dim=1)


def distance(drawn: Tensor, wanted: Tensor) -> float:
    """Root mean square over the statistics of the distance of two sets of pictures, in standard deviations."""
    return distance_between(statistics(drawn), statistics(wanted))


def distance_between(one: Tensor, other: Tensor) -> float:
    """As `distance`, of the statistics of the pictures."""
    spread = other.std(0).clamp(min=1e-3)
    return float(((one.mean(0) - other.mean(0)) / spread).square().mean().sqrt())
