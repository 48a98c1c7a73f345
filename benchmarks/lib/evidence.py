"""Whether an effect is that of the map, or that of any change of its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tools.results import Cell, Column, Estimate

from .intervals import interval

CLEARS_COLUMNS = (
    Column("ahead of the closest control", format="+.3f", spread="interval"),
    Column("clears all controls"),
)


@dataclass(frozen=True)
class Cleared:
    """How an effect compares with its controls.

    Attributes:
        margin: mean difference to the control that comes closest, paired by unit, with its 95% interval.
        count: number of controls whose interval of the difference lies above 0.
        of: number of controls.
    """

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
        return [self.margin, "yes" if self.all else f"**no** ({self.count} of {self.of})"]


def cleared(units: np.ndarray, controls: Mapping[str, np.ndarray]) -> Cleared:
    """Compare scores with those of controls: each control is cleared if the interval of the difference is above 0.

    Args:
        units: a score for each independent unit, such as a prompt, higher where the effect is larger, ``[units]``.
        controls: the same for each control, by name.
    """
    margins = {name: interval(units - control) for name, control in controls.items()}
    count = sum(margin.low > 0 for margin in margins.values())
    return Cleared(min(margins.values(), key=lambda margin: margin.value), count, len(controls))
