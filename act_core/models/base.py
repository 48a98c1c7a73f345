"""The common base of all adapters: one interface to fit, steer and run a model of any library."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, SupportsFloat, TypeVar, cast, get_args

from torch import nn

from ..errors import MapError
from ..fitting import FitModel
from ..maps import ActMap
from ..settings import MAX_SEED, Branch, Strength, as_integer, check_choice
from ..steering import BatchRows, Steering, steer

Output = TypeVar("Output")


class SteerableModel(FitModel[str], Generic[Output]):
    """A model that runs on prompts: fit a map on it, steer it, generate with it.

    An adapter runs one call at a time. A server that shares one between threads must hold a lock for the whole ``with
    model.steer(...)`` block, or requests steer each other.

    Attributes:
        name: display name, such as the model's folder.
    """

    name: str = ""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The parts that can be steered, by component name, in the order in which they run."""
        raise NotImplementedError

    def steer(self, act_map: ActMap, strength: Strength = 1.0, branch: Branch = "positive") -> Steering:
        """Steer what `generate` returns: ``with model.steer(act_map, 0.7): model.generate([...])``.

        Args:
            act_map: a map for this model.
            strength: one number, or one for each component of the map.
            branch: under guidance (CFG), the half of the batch that is steered. Guidance cancels any change that is
                made to both branches, so ``both`` has little effect. A model without guidance has only the positive
                branch.

        Raises:
            MapError: an unknown branch, or a map or strength that `act_core.steer` refuses.
        """
        check_choice("branch", branch, get_args(Branch))
        return steer(self.modules, act_map, strength, rows=self._rows(branch))

    def generate(
        self, prompts: Sequence[str], *, seed: int = 0, step: Callable[[], object] | None = None
    ) -> list[Output]:
        """One output for each prompt, all in one batch; adapters add further settings.

        Args:
            prompts: the texts.
            seed: the same seed gives the same output. The global random state is not changed.
            step: called after each step (a token, a denoising step); an exception that it raises ends the run.

        Raises:
            MapError: no prompts, a bare string, or a setting that is out of range.
        """
        raise NotImplementedError

    def _rows(self, branch: Branch) -> Mapping[str, BatchRows] | None:
        """The rows of a batch that belong to a branch, by component; None for all of them."""
        raise NotImplementedError


def checked_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts of a call of `generate` as a list.

    Raises:
        MapError: a bare string, an empty list, or an item that is not a string.

    Example:
        >>> checked_prompts(("a cat", "a dog"))
        ['a cat', 'a dog']
        >>> checked_prompts("a cat")
        Traceback (most recent call last):
        ...
        act_core.errors.MapError: generate takes a list of prompts; write ['a cat'] for a single one.
    """
    if isinstance(prompts, (str, bytes)):
        raise MapError(f"generate takes a list of prompts; write [{reprlib.repr(prompts)}] for a single one.")
    try:
        listed = list(cast("Sequence[object]", prompts))
    except TypeError:
        raise MapError(f"The prompts are {reprlib.repr(prompts)}; give a list of texts.") from None
    if not listed:
        raise MapError("The list of prompts is empty; give at least one.")
    for number, prompt in enumerate(listed, start=1):
        if not isinstance(prompt, str):
            raise MapError(f"Prompt {number} is {reprlib.repr(prompt)}, not a text; write a prompt there.")
    return cast("list[str]", listed)


def checked_seed(seed: object) -> int:
    """A seed from Python, numpy or torch as an int.

    Raises:
        MapError: it is not a whole number from 0 to `MAX_SEED`.

    Example:
        >>> checked_seed(7)
        7
    """
    return as_integer("seed", seed, 0, MAX_SEED, MapError)


def as_real(name: str, value: object, low: float, high: float = math.inf) -> float:
    """A finite number from `low` to `high`, of Python, numpy or torch, as a float.

    Raises:
        MapError: it is not one.

    Example:
        >>> as_real("guidance", 3, 0)
        3.0
    """
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(cast("SupportsFloat", value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and low <= number <= high):
        bounds = f", at least {low:g}" if math.isinf(high) else f" from {low:g} to {high:g}"
        raise MapError(f"{name} is {reprlib.repr(value)}; it must be a finite number{bounds}.")
    return number
