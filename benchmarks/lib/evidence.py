"""Whether an effect is that of the map, or that of any change of its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tools.results import Cell, Column, Estimate

from .intervals import interval

CLEARS_COLUMNS = (Column("closest control", format=".3f"), Column("clears all controls"))


@dataclass(frozen=True)
class Cleared:
    """How an effect compares with its controls.

    Attributes:
        name: of the control that comes closest.
        score: mean score of that control.
        margin: mean difference to it, paired by unit, with its 95% interval.
        count: number of controls whose interval of the difference lies above 0.
        of: number of controls.
    """

    name: str
    score: float
    margin: Estimate
    count: int
    of: int

    @property
    def all(self) -> bool:
        """Whether the effect is above every control."""
        return self.count == self.of

    @property
    def cells(self) -> list[Cell]:
        """Cells for `CLEARS_COLUMNS`."""
        return [self.score, "yes" if self.all else f"**no** ({self.count} of {self.of})"]


def cleared(units: np.ndarray, controls: Mapping[str, np.ndarray]) -> Cleared:
    """Compare scores with those of controls: each control is cleared if the interval of the difference is above 0.

    Args:
        units: a score for each independent unit, such as a prompt, higher where the effect is larger, ``[units]``.
        controls: the same for each control, by name.
    """
    margins = {name: interval(units - control) for name, control in controls.items()}
    closest = min(margins, key=lambda name: margins[name].value)
    count = sum(margin.low > 0 for margin in margins.values())
    return Cleared(closest, float(controls[closest].mean()), margins[closest], count, len(controls))
