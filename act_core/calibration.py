"""The measured curve of a map: which strengths are of use, what a negative one does, and a scale with even steps."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

from .errors import MapError
from .settings import MAX_STRENGTH, as_strength, check_choice

Negative = Literal["negated", "inverse", "none"]

MAX_POINTS = 1000
# The position on the schedule, from 1 (noise) to 0, at which a model looks at what was drawn.
LEVEL = 0.4


@dataclass(frozen=True)
class Calibration:
    """What was measured of a map at several strengths; made by `act_core.calibrate`.

    A strength below 0 stands for what `negative` says: with ``inverse``, -0.5 is the inverse map at strength 0.5.

    Attributes:
        strengths: those that were measured, ascending, with 0 among them.
        effects: how far the pictures moved at each: 1 is the whole way from source to target.
        kept: how much of the content they kept at each: 1 is all of it, 0 as much as another subject shares.
        up: strengths from 0 to the upper end of the recommended range, at even steps to the eye.
        down: strengths from 0 to its lower end; empty if the map has no usable opposite.
        negative: what a strength below 0 does: ``negated`` is the map itself at that strength, ``inverse`` the inverse
            map, and ``none`` that neither is a usable opposite.

    Raises:
        MapError: lists of different lengths, values out of order or not finite, or ends that contradict `negative`.

    Example:
        >>> Calibration((-1.0, 0.0, 1.0), (-0.5, 0.0, 1.0), (0.9, 1.0, 0.7), (0.0, 0.6, 1.0), (0.0, -1.0)).raw(0.5)
        0.6
    """

    strengths: tuple[float, ...]
    effects: tuple[float, ...]
    kept: tuple[float, ...]
    up: tuple[float, ...]
    down: tuple[float, ...] = ()
    negative: Negative = "negated"

    def __post_init__(self) -> None:
        check_choice("negative", self.negative, get_args(Negative))
        curves = self.strengths, self.effects, self.kept, self.up, self.down
        if not all(abs(value) <= MAX_STRENGTH for curve in curves for value in curve):
            raise MapError("The calibration has values that are not finite or too large; calibrate the map again.")
        if not len(self.strengths) == len(self.effects) == len(self.kept) <= MAX_POINTS >= len(self.up + self.down):
            raise MapError("The curves of the calibration differ in length, or are too long; calibrate the map again.")
        if 0.0 not in self.strengths or not _rises(self.strengths):
            raise MapError("The strengths of the calibration do not ascend through 0; calibrate the map again.")
        if len(self.up) < 2 or self.up[0] or not _rises(self.up):
            raise MapError("The scale of the calibration does not rise from 0; calibrate the map again.")
        if (len(self.down) < 2 or self.down[0] or not _rises(self.down[::-1])) if self.down else self._has_opposite:
            raise MapError("The scale of the calibration does not fall from 0; calibrate the map again.")
        if self.down and not self._has_opposite:
            raise MapError("The calibration has a scale below 0, but no opposite; calibrate the map again.")

    @property
    def range(self) -> tuple[float, float]:
        """The lower and the upper end of the recommended strengths; the lower one is 0 without a usable opposite."""
        return (self.down[-1] if self.down else 0.0), self.up[-1]

    @property
    def strength_range(self) -> tuple[float, float]:
        """The recommended strengths of the map itself, with two decimals, as on its card.

        They are rounded outwards. The lower end is 0 if the opposite is the inverse map.

        Example:
            >>> Calibration((0.0, 1.0), (0.0, 1.0), (1.0, 0.7), (0.0, 0.625), (0.0, -1.0), "inverse").strength_range
            (0.0, 0.63)
        """
        low, high = self.range
        return 0.0 - _rounded_up(0.0 - low if self.negative == "negated" else 0.0), _rounded_up(high)

    @property
    def _has_opposite(self) -> bool:
        return self.negative != "none"

    def raw(self, u: float) -> float:
        """The strength at a position of the even scale: -1 to 1 is the recommended range.

        Beyond 1 and -1, the last step goes on.

        Raises:
            MapError: a position below 0, and the map has no usable opposite, or one that is not a number from
                -`MAX_STRENGTH` to `MAX_STRENGTH`.
        """
        u = as_strength(u)
        if u < 0 and not self.down:
            raise MapError(
                "The calibrated strength is below 0, but this map has no usable opposite; give 0 to 1, or turn off "
                "calibrated."
            )
        knots = self.down if u < 0 else self.up
        at = abs(u) * (len(knots) - 1)
        before = min(int(at), len(knots) - 2)
        return knots[before] + (at - before) * (knots[before + 1] - knots[before])

    def position(self, strength: float) -> float | None:
        """The position of a strength on the even scale; None below 0 if the map has no usable opposite.

        Example:
            >>> Calibration((0.0, 1.0), (0.0, 1.0), (1.0, 0.7), (0.0, 0.6, 1.0), negative="none").position(0.6)
            0.5
        """
        if strength < 0 and not self.down:
            return None
        sign = -1.0 if strength < 0 else 1.0
        knots = [abs(knot) for knot in (self.down if strength < 0 else self.up)]
        before = min(bisect_right(knots, abs(strength)), len(knots) - 1) - 1
        part = (abs(strength) - knots[before]) / (knots[before + 1] - knots[before])
        return sign * (before + part) / (len(knots) - 1)

    def scaled(self, number: float) -> Calibration | None:
        """The calibration of the map that at strength 1 does what this one does at `number`.

        None if unknown, or if its strengths would be beyond `MAX_STRENGTH`.
        """
        if not number or (number < 0 and self.negative != "negated"):
            return None
        order = slice(None, None, 1 if number > 0 else -1)
        # Adding 0 turns -0 into 0.
        strengths, up, down = (tuple(s / number + 0.0 for s in curve) for curve in (self.strengths, self.up, self.down))
        if max(map(abs, (*strengths, *up, *down))) > MAX_STRENGTH:
            return None
        return replace(
            self,
            strengths=strengths[order],
            effects=tuple(effect if number > 0 else 0.0 - effect for effect in self.effects[order]),
            kept=self.kept[order],
            up=up if number > 0 else down,
            down=down if number > 0 else up,
        )

    def reversed(self) -> Calibration | None:
        """The calibration of the inverse map; None unless it was measured as the opposite."""
        if self.negative != "inverse":
            return None
        return replace(
            self,
            strengths=tuple(0.0 - strength for strength in reversed(self.strengths)),
            effects=tuple(0.0 - effect for effect in reversed(self.effects)),
            kept=self.kept[::-1],
            up=tuple(0.0 - strength for strength in self.down),
            down=tuple(0.0 - strength for strength in self.up),
        )


def _rounded_up(value: float) -> float:
    """With two decimals; what only the rounding of floats adds does not count."""
    return math.ceil(round(100 * value, 6)) / 100


def _rises(values: tuple[float, ...]) -> bool:
    return all(one < other for one, other in pairwise(values))
