"""Noise levels, at each of which a map may have coefficients of its own.

A noise level is the time that a diffusion model is given, as a share of the longest: 1 is pure noise, 0 a clean
picture. In a flow it is the share of noise in the latent; with 1000 timesteps, timestep 999 is level 1. It does not
depend on how a sampler spaces its steps, so a node that shifts the schedule does not change it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

from .errors import MapError
from .numeric import real

# Of a fit from pictures. They are closer together where the model decides what it draws.
LEVELS = (0.95, 0.85, 0.7, 0.5, 0.3)
MAX_LEVELS = 64


def as_level(value: object) -> float:
    """A noise level as a float.

    Raises:
        MapError: it is not a number from 0 to 1.

    Example:
        >>> as_level(1)
        1.0
    """
    number = real(value)
    if not 0 <= number <= 1:
        raise MapError(f"The noise level is {reprlib.repr(value)}; it must be a number from 0 to 1.")
    return number


def check_levels(levels: Sequence[float]) -> None:
    """Refuse levels that the bins of a map cannot have.

    Raises:
        MapError: a level is not a number above 0 and up to 1, they do not fall, or there are more than `MAX_LEVELS`.

    Example:
        >>> check_levels((0.5, 0.9))
        Traceback (most recent call last):
        ...
        act_core.errors.MapError: The noise levels are 0.5, 0.9; each must be lower than the one before it.
    """
    if len(levels) > MAX_LEVELS:
        raise MapError(f"There are {len(levels)} noise levels; a map can have {MAX_LEVELS}.")
    for level in levels:
        if as_level(level) == 0:
            raise MapError("A noise level is 0, at which there is no noise; it must be above 0 and at most 1.")
    if any(after >= before for before, after in pairwise(levels)):
        listed = ", ".join(f"{level:g}" for level in levels)
        raise MapError(f"The noise levels are {listed}; each must be lower than the one before it.")


def as_levels(levels: Iterable[object]) -> tuple[float, ...]:
    """Noise levels in any order, the noisiest first.

    Raises:
        MapError: there are none, or they cannot be the bins of a map.

    Example:
        >>> as_levels([0.2, 0.9])
        (0.9, 0.2)
    """
    found = tuple(sorted((as_level(level) for level in levels), reverse=True))
    if not found:
        raise MapError("There are no noise levels; give at least one, such as 0.8.")
    check_levels(found)
    return found


def parsed_levels(text: str) -> tuple[float, ...]:
    """As `as_levels`, from numbers that are separated by commas or spaces.

    Example:
        >>> parsed_levels("0.2, 0.9")
        (0.9, 0.2)
        >>> parsed_levels("0.9, high")
        Traceback (most recent call last):
        ...
        act_core.errors.MapError: The noise levels are '0.9, high'; give numbers from 0 to 1, separated by commas.
    """
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise MapError(
            f"The noise levels are {reprlib.repr(text)}; give numbers from 0 to 1, separated by commas."
        ) from None
    return as_levels(numbers)


def nearest(levels: Sequence[float], level: float) -> int:
    """The index of the nearest of several levels; of two equally near, that of the first.

    Example:
        >>> nearest((0.9, 0.5, 0.2), 0.8)
        0
    """
    return min(range(len(levels)), key=lambda number: abs(levels[number] - level))
