"""Which samples a refinement trains on at each step, and which it only checks, see `act_core.fitting.refine`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Generic

from .samples import Sample

# Fewer samples than these are all trained on.
_MIN_HELD_BACK = 2


class Draws(Generic[Sample]):
    """Samples in a random order, the same for the same seed.

    Args:
        samples: all of them.
        batch_size: samples of a step.
        share: how much of them to hold back.
        seed: of the order.

    Attributes:
        training: samples to train on.
        held_back: samples to check on; may be empty.

    Example:
        >>> draws = Draws(list(range(10)), 4, 0.2, seed=0)
        >>> len(draws.training), len(draws.held_back), len(draws.batch(0))
        (8, 2, 4)
        >>> sorted(draws.batch(0) + draws.batch(1)) == sorted(draws.training)
        True
    """

    def __init__(self, samples: Sequence[Sample], batch_size: int, share: float, seed: int) -> None:
        shuffled = list(samples)
        random.Random(seed).shuffle(shuffled)
        count = int(len(samples) * share)
        count = count if count >= _MIN_HELD_BACK else 0
        self.held_back, self.training = shuffled[:count], shuffled[count:]
        self._batch_size = min(batch_size, len(self.training))
        self._seed = seed

    def batch(self, step: int) -> list[Sample]:
        """The samples of a step: each is drawn once before any is drawn again."""
        count = len(self.training)
        numbers = range(step * self._batch_size, (step + 1) * self._batch_size)
        orders: dict[int, list[Sample]] = {}
        for epoch in {number // count for number in numbers}:
            orders[epoch] = list(self.training)
            random.Random(self._seed + epoch).shuffle(orders[epoch])
        return [orders[number // count][number % count] for number in numbers]
