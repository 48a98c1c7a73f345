"""Splits samples into groups, for a fit that cannot hold all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import TypeVar

import torch

Item = TypeVar("Item")


def groups(
    source: Sequence[Item], target: Sequence[Item], resident: int, seed: int
) -> list[tuple[Sequence[Item], Sequence[Item]]]:
    """Source and target samples in groups of at most `resident` (four or more), shuffled if there are several."""
    total = len(source) + len(target)
    if resident >= total:
        return [(source, target)]
    generator = torch.Generator().manual_seed(seed)
    shuffled: list[list[Item]] = []
    for side in (source, target):
        order = torch.randperm(len(side), generator=generator, device=generator.device)
        shuffled.append([side[int(i)] for i in order])
    empty: Sequence[Item] = ()
    for count in range(-(-total // resident), total):
        # The first part of a side is the largest, and must be two samples at least.
        parts = [_split(side, min(count, len(side) - 1)) for side in shuffled]
        found = [(a, b) for a, b in zip_longest(*parts, fillvalue=empty)]
        if max(len(a) + len(b) for a, b in found) <= resident:
            return found
    raise AssertionError("four samples always make a group")


def _split(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Consecutive parts whose sizes differ by at most one, the larger ones first."""
    size, larger = divmod(len(items), parts)
    starts = [size * i + min(i, larger) for i in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(starts)]
