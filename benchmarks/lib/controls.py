"""Maps of the same size as a given one that should do nothing in particular."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from act_core import ActMap
from act_core.demo.statistics import permuted

RANDOM_CONTROLS = 10
Sample = TypeVar("Sample")


def flipped(act_map: ActMap, seed: int = 0) -> ActMap:
    """The map with the displacement of each channel reversed or kept, by chance: the same size for every activation."""
    generator = torch.Generator().manual_seed(seed)
    reversed_ = {
        site: replace(transport, omega=1 + sign * (transport.omega - 1), beta=sign * transport.beta, statistics=None)
        for site, transport in act_map.transports.items()
        for sign in (2.0 * torch.randint(2, (transport.channels,), generator=generator) - 1,)
    }
    return replace(act_map, transports=reversed_)


def random_controls(act_map: ActMap, count: int = RANDOM_CONTROLS) -> dict[str, ActMap]:
    """Maps of the same size without a direction, by name: one half permuted, the other half flipped."""
    makers = {"permuted": permuted, "flipped": flipped}
    names = [(list(makers)[number % 2], number // 2) for number in range(count)]
    return {f"{name} {seed + 1}": makers[name](act_map, seed) for name, seed in names}


def exchanged(one: Sequence[Sample], other: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Two sides with half of each exchanged, to fit a control on: there is no difference to learn."""
    return [*one[::2], *other[1::2]], [*other[::2], *one[1::2]]


def all_controls(act_map: ActMap, mixed: ActMap) -> dict[str, ActMap]:
    """The random maps, and one that was fitted on `exchanged` sides, by name."""
    return {**random_controls(act_map), "shuffled sides": mixed}
