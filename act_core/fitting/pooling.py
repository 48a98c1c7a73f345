"""Reduces the activations at a site to pooled values and extremes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..gates import row_means
from ..sites import Layout
from .samples import Side


@dataclass(frozen=True)
class Values:
    """Pooled activations at one site.

    Attributes:
        pooled: ``[rows, channels]``, one row per sample.
        interval: minimum and maximum, ``[channels]`` each; None if not needed.
        gated: means ``[rows, channels]`` as a gate reads them in a live model; None if not needed.
        dtype: of the activations.
    """

    pooled: Tensor
    interval: tuple[Tensor, Tensor] | None
    gated: Tensor | None
    dtype: torch.dtype

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [t for t in (self.pooled, *(self.interval or ()), self.gated) if t is not None]

    def to(self, device: torch.device) -> Values:
        """The same values on a device."""
        if self.pooled.device == device:
            return self
        interval = None if self.interval is None else (self.interval[0].to(device), self.interval[1].to(device))
        gated = None if self.gated is None else self.gated.to(device)
        return Values(self.pooled.to(device), interval, gated, self.dtype)


def pool(x: Tensor, layout: Layout, mask: Tensor | None) -> Tensor:
    """Mean over tokens, or over height and width, in float32: ``[rows, channels]``, in memory of its own."""
    means = row_means(x, layout, mask).flatten(1)
    # A vector is its own mean, which the next layer may overwrite, as a ReLU in place does.
    return means.clone() if layout == "vector" else means


def extremes(x: Tensor, layout: Layout, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Minimum and maximum single value of each channel, ``[channels]`` each; padding is ignored."""
    dims = {"vector": (0,), "tokens": tuple(range(x.ndim - 1)), "spatial": (0, *range(2, x.ndim))}[layout]
    if layout != "tokens" or mask is None:
        return x.amin(dims), x.amax(dims)
    padding = ~mask.unsqueeze(-1)
    return x.masked_fill(padding, torch.inf).amin(dims), x.masked_fill(padding, -torch.inf).amax(dims)


class SiteValues:
    """The values of one site, from all groups of samples so far."""

    def __init__(self) -> None:
        self.pooled: dict[Side, list[Tensor]] = {"source": [], "target": []}
        self.gated: dict[Side, list[Tensor]] = {"source": [], "target": []}
        self.interval: tuple[Tensor, Tensor] | None = None

    def add(self, values: Mapping[Side, Sequence[Values]], *, to_cpu: bool) -> None:
        """Add the values of a group; with several groups, they are kept in main memory."""
        for side, batches in values.items():
            for v in batches:
                self.pooled[side].append(v.pooled.cpu() if to_cpu else v.pooled)
                if v.gated is not None:
                    self.gated[side].append(v.gated.cpu() if to_cpu else v.gated)
                if v.interval is not None:
                    low, high = self.interval or v.interval
                    self.interval = torch.minimum(low, v.interval[0]), torch.maximum(high, v.interval[1])
