"""What `act_core.calibrating` reads off latents and activations: effect, content kept, steps, and the range of use."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

# All chosen on the demo model, by the pictures that a separately trained judge preferred; see benchmarks/README.md.
MIN_KEPT, MIN_EFFECT = 0.2, 0.3
PEAK = 0.05  # a strength whose effect is this close to the highest is as good
LEVEL_OFF = 0.9  # strengths that add less than this share of the mean slope are left out
# An opposite is of use only if it leads away from the target by a quarter of the way between the two.
MIN_KEPT_AWAY, MIN_EFFECT_AWAY = 0.5, 0.25

# Knots of an even scale from 0 to 1.
KNOTS = 11


@dataclass(frozen=True)
class Arm:
    """What was measured on the way out from strength 0, in one direction.

    Attributes:
        strengths: from 0 outwards, without sign.
        effects: at each, as a share of the way from source to target.
        kept: content kept at each.
        steps: distance between the pictures of each strength and those of the next.
    """

    strengths: Sequence[float]
    effects: Sequence[float]
    kept: Sequence[float]
    steps: Sequence[float]

    def towards(self, complete: float = 1.0) -> float:
        """The strength at which the effect levels off on its way to complete or highest, while content is kept.

        It is the knee of the curve: the measured strength that lies furthest above a line through 0 with a share
        `LEVEL_OFF` of the curve's mean slope. Further out, pictures that have arrived go back and forth. A curve that
        never levels off ends where it is complete or highest. 0 if there is no strength of use.

        Example:
            >>> Arm((0.0, 1.0, 2.0), (0.0, 0.8, 1.2), (1.0, 0.8, 0.6), (1.0, 1.0)).towards()
            1.0
            >>> Arm((0.0, 1.0, 2.0), (0.0, 0.5, 1.0), (1.0, 0.8, 0.6), (1.0, 1.0)).towards()
            2.0
        """
        count = next((at for at, kept in enumerate(self.kept) if kept < MIN_KEPT), len(self.kept))
        effects = self.effects[:count]
        highest = max(effects)
        if highest < MIN_EFFECT:
            return 0.0
        end = next(at for at, effect in enumerate(effects) if effect >= min(complete, highest - PEAK))
        before, after = effects[end - 1], effects[end]
        part = (complete - before) / (after - before) if after > complete else 1.0
        last = self.strengths[end - 1] + part * (self.strengths[end] - self.strengths[end - 1])
        reached = before + part * (after - before)
        slope = LEVEL_OFF * reached / last
        points = [*zip(self.strengths[:end], effects[:end], strict=True), (last, reached)]
        return max(points, key=lambda point: point[1] - slope * point[0])[0]

    def away(self) -> float:
        """The strength up to which each step leads further away from the target, while content is kept; or 0.

        Example:
            >>> Arm((0.0, 1.0, 2.0), (0.0, -0.3, -0.2), (1.0, 0.8, 0.6), (1.0, 1.0)).away()
            1.0
        """
        end = 0
        for at in range(1, len(self.effects)):
            if self.kept[at] < MIN_KEPT_AWAY or self.effects[at] >= self.effects[at - 1]:
                break
            end = at
        return self.strengths[end] if self.effects[end] <= -MIN_EFFECT_AWAY else 0.0

    def furthest(self) -> float:
        """The effect where `away` ends."""
        return _between(self.away(), self.strengths, self.effects) if len(self.strengths) > 1 else 0.0

    @property
    def curves(self) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
        """Strengths, effects, and content kept."""
        return self.strengths, self.effects, self.kept

    def even(self, end: float) -> tuple[float, ...]:
        """Strengths from 0 to `end` between which the pictures change by the same amount.

        Example:
            >>> [round(s, 2) for s in Arm((0.0, 1.0, 2.0), (0.0,) * 3, (1.0,) * 3, (1.0, 3.0)).even(2.0)][::5]
            [0.0, 1.33, 2.0]
        """
        travelled = list(accumulate(self.steps, initial=0.0))
        whole = _between(end, self.strengths, travelled)
        inner = (_between(whole * at / (KNOTS - 1), travelled, self.strengths) for at in range(1, KNOTS - 1))
        return 0.0, *inner, end


def _between(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Linear interpolation."""
    at = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    return ys[at - 1] + (x - xs[at - 1]) / (xs[at] - xs[at - 1]) * (ys[at] - ys[at - 1])


def direction(source: Tensor, target: Tensor) -> Tensor:
    """The weights ``[channels]`` whose product with an activation rises by 1 from source to target.

    Channels that vary among the samples ``[n, channels]`` of a side count less. If the sides are the same, all are 0.
    """
    source, target = source.double(), target.double()
    spread = torch.cat([source - source.mean(0), target - target.mean(0)]).var(0)
    spread = spread + 0.1 * spread.mean()
    shift = target.mean(0) - source.mean(0)
    weights = shift / spread if bool((spread > 0).all()) else shift
    length = shift @ weights
    return weights / length if length > 0 else torch.zeros_like(weights)


def content_kept(latents: Tensor, unsteered: Tensor) -> float:
    """Mean correlation of latents ``[subjects, ...]`` with the unsteered ones, against that with other subjects.

    What all subjects share, such as their style, does not count.

    Example:
        >>> latents = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        >>> round(content_kept(latents + 5, latents), 3)
        1.0
    """
    sides: list[Tensor] = [latents.double(), unsteered.double()]
    x, y = (functional.normalize((side - side.mean(0)).flatten(1), dim=1) for side in sides)
    alike = x @ y.T
    same = float(alike.diag().mean())
    others = (float(alike.sum()) - len(alike) * same) / (alike.numel() - len(alike))
    return (same - others) / (1 - others)


def step_between(latents: Tensor, others: Tensor) -> float:
    """How far pictures ``[subjects, ...]`` are from others of the same noise: mean distance of their latents."""
    apart: Tensor = (latents.double() - others.double()).flatten(1)
    return float(apart.square().sum(1).sqrt().mean())
