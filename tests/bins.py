"""Small maps with noise levels that several test files share."""

from __future__ import annotations

import torch
from torch import Tensor

from act_core import ActMap
from act_core.sites import Site
from act_core.transport import Transport, fit_transport, stacked

LEVELS = (0.9, 0.5, 0.2)
CHANNELS = 4
FIRST, SECOND = (Site("diffusion_model", name, None, "tokens", CHANNELS) for name in ("0", "1"))


def values(seed: int, rows: int = 6) -> Tensor:
    return torch.randn(rows, CHANNELS, generator=torch.Generator().manual_seed(seed)) * (1 + seed % 3)


def binned_transport(seed: int, *, bounded: bool = False) -> Transport:
    ends = (torch.full((CHANNELS,), -1.0), torch.full((CHANNELS,), 1.0)) if bounded else None
    fitted = [fit_transport(values(seed + n), values(seed + n + 50), interval=ends) for n in range(len(LEVELS))]
    return stacked(fitted)


def binned_map(*, bounded: bool = False) -> ActMap:
    transports = {FIRST: binned_transport(1, bounded=bounded), SECOND: binned_transport(20, bounded=bounded)}
    return ActMap(transports, levels=LEVELS)


def plain_map(seed: int = 7) -> ActMap:
    return ActMap({FIRST: fit_transport(values(seed), values(seed + 1))})
