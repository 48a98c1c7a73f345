"""Models and checks that the tests of parking share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from helpers import assert_identical, prompts, randomise
from torch import Tensor, nn

from act_core import ActMap, fit

SOURCE, TARGET = prompts("source", 9), prompts("target", 8)
LAYERS = "toy/layers.*"


def both(model: Any, source: Sequence[str] = SOURCE, target: Sequence[str] = TARGET, **settings: Any) -> ActMap:
    """The map of a parked fit, which must be that of the unbounded one."""
    free = fit(model, source, target, batch_size=3, **settings)
    parked = fit(model, source, target, batch_size=3, memory_budget=1, **settings)
    assert_identical(free, parked)
    assert parked.record.walk == "exact"
    return parked


class Skipping(nn.Module):
    """Keeps its first activations for its last layer, as a UNet does; with views, aliases and in-place operators."""

    def __init__(self, channels: int = 16, layers: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(channels, channels) for _ in range(layers)])
        self.last: Tensor | None = None
        randomise(self, scale=0.2)

    def forward(self, x: Tensor) -> Tensor:
        skip = x * 2
        half, alias = skip[..., :8], skip.detach()
        for layer in self.layers[:-1]:
            left, right = x.chunk(2, -1)
            x = layer(x)
            self.last = x
            x[..., :8].mul_(0.5).add_(left)
            x = x.view(x.shape).tanh_()
            x[..., 8:] += right
        half += 1
        return self.layers[-1](x + alias)


class Cached(nn.Module):
    """Makes a table in its first run, keeps it in several places, and reads it in every later one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.table: Tensor | None = None
        self.last: Tensor | None = None
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(0, 1, 16) + 0.5
            self.register_buffer("scale", self.table * 2, persistent=False)
        for layer in self.layers:
            x = self.last = layer(x * self.table) * self.scale
        return x


def cached_is_whole(module: Cached) -> None:
    table = torch.linspace(0, 1, 16) + 0.5
    assert module.table is not None
    assert torch.equal(module.table, table)
    assert torch.equal(module.scale, table * 2)  # pyright: ignore[reportArgumentType]
    assert module.last is not None
    assert module.last.untyped_storage().nbytes() == module.last.numel() * 4
    assert torch.equal(module(torch.ones(2, 16)), module(torch.ones(2, 16)))
