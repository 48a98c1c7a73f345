"""Checks numbers that users give."""

from __future__ import annotations

import math
import operator
from typing import Any, cast

from .errors import FitError, MapError


def as_integer(name: str, value: object, low: int, high: float = math.inf, error: type[MapError] = FitError) -> int:
    """A whole number from `low` to `high`, of Python, numpy or torch.

    Raises:
        FitError: it is not one; or the class that `error` names.

    Example:
        >>> as_integer("seed", 3, 0)
        3
    """
    try:
        number = operator.index(cast("Any", value))
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        bounds = f"at least {low}" if math.isinf(high) else f"from {low} to {int(high)}"
        raise error(f"{name} is {value!r}; it must be a whole number, {bounds}.")
    return number


def check_number(name: str, value: object, low: float, high: float) -> None:
    """Raise an error if a setting is not a number from `low` to `high`.

    Raises:
        FitError: it is not.

    Example:
        >>> check_number("rate", 2, 0, 1)
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: rate is 2; it must be a number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise FitError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}.")
