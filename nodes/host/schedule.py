"""When in the sampling schedule a map acts, and how strongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ...act_core import MapError

Shape = Literal["constant", "fade in", "fade out"]

# Halvings of the window that find the position of a sigma: more precise than the steps of the widgets.
_HALVINGS = 20
_DECIMALS = 4


@dataclass(frozen=True)
class Window:
    """The part of the sampling schedule in which a map acts, from 0 to 1; a step at its very end is left out.

    Attributes:
        start, end: positions on the schedule, as the host's own nodes count them.
        shape: how the strength goes from the start of the window to its end: unchanged, or linearly from or to 0.
        curve: what the strength is multiplied by, from a position in the window (0 to 1); in place of the shape.

    Raises:
        MapError: not numbers, or the end comes before the start.
    """

    start: float = 0.0
    end: float = 1.0
    shape: Shape = "constant"
    curve: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        for name, value in (("start_percent", self.start), ("end_percent", self.end)):
            if not 0 <= value <= 1:
                raise MapError(f"{name} is {value:g}; it must be a number from 0 to 1.")
        if self.end < self.start:
            raise MapError(f"end_percent {self.end:g} comes before start_percent {self.start:g}; swap the two.")

    def __str__(self) -> str:
        """For reports; empty if the map acts with the same strength over the whole schedule."""
        part = "the schedule" if self.is_whole else f"{self.start:g} to {self.end:g} of the schedule"
        if self.is_constant:
            return "" if self.is_whole else part
        return f"{self.shape if self.curve is None else 'a curve'} over {part}"

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.end == 1

    @property
    def is_constant(self) -> bool:
        return self.shape == "constant" and self.curve is None

    def factor(self, model_sampling: Any, options: dict[str, Any]) -> float | None:
        """What the strength is multiplied by at the host's current step; None outside the window."""
        if self.is_whole and self.is_constant:
            return 1.0
        # Evaluated at sampling time, since a node that shifts the schedule may come after ours.
        sigma = float(options["sigmas"].max())
        first, last = (float(model_sampling.percent_to_sigma(percent)) for percent in (self.start, self.end))
        if not (self.is_whole or last < sigma <= first):
            return None
        if self.is_constant:
            return 1.0
        position = (self._percent(model_sampling, sigma) - self.start) / (self.end - self.start)
        if self.curve is not None:
            return float(self.curve(position))
        return position if self.shape == "fade in" else 1 - position

    def _percent(self, model_sampling: Any, sigma: float) -> float:
        """The position of a sigma inside the window; the host only has the function from position to sigma."""
        low, high = self.start, self.end
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if float(model_sampling.percent_to_sigma(middle)) > sigma:
                low = middle
            else:
                high = middle
        # Rounded, so that the first step lies at exactly 0.
        return min(max(round(low, _DECIMALS), self.start), self.end)
