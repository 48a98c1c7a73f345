"""Checks numbers that users give."""

from __future__ import annotations

import math
import operator
from typing import Any, SupportsFloat, cast

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


def as_number(name: str, value: object, low: float, high: float, error: type[MapError] = FitError) -> float:
    """A number from `low` to `high`, of Python, numpy or torch, as a float.

    Raises:
        FitError: it is not one; or the class that `error` names.

    Example:
        >>> as_number("rate", 2, 0, 1)
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: rate is 2; it must be a number from 0 to 1.
    """
    number = real(value)
    if not low <= number <= high:
        raise error(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}.")
    return number


def real(value: object) -> float:
    """A real number of Python, numpy or torch as a float; NaN for anything else, such as a truth value or a text.

    Example:
        >>> real(3), real("3")
        (3.0, nan)
    """
    if isinstance(value, (bool, str, bytes)) or "bool" in str(getattr(value, "dtype", "")):
        return math.nan
    try:
        return float(cast("SupportsFloat", value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan
