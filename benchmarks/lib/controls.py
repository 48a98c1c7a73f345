"""Maps of the same size as a given one that should do nothing in particular."""

from __future__ import annotations

from dataclasses import replace

import torch

from act_core import ActMap


def permuted(act_map: ActMap, seed: int = 0) -> ActMap:
    """The map with the coefficients of each site shuffled over its channels: the same sizes, no direction."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = {
        site: replace(transport, omega=transport.omega[order], beta=transport.beta[order], statistics=None)
        for site, transport in act_map.transports.items()
        for order in (torch.randperm(transport.channels, generator=generator),)
    }
    return replace(act_map, transports=shuffled)
