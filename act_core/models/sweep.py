"""The same prompts at several strengths of a map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import MapError
from ..maps import ActMap
from ..settings import Branch
from .base import Output, SteerableModel


def sweep(
    model: SteerableModel[Output],
    act_map: ActMap,
    prompts: Sequence[str],
    strengths: Sequence[float],
    *,
    branch: Branch = "positive",
    step: Callable[[], object] = lambda: None,
    **settings: Any,
) -> list[list[Output]]:
    """Outputs for each prompt at all strengths, from the same seed.

    Args:
        model: any adapter.
        act_map: a map for it.
        prompts: one row each.
        strengths: one column each.
        branch: see `SteerableModel.steer`.
        step: called after each strength.
        settings: for the model's ``generate``, such as ``seed``.

    Raises:
        MapError: an empty list of strengths, or a map that does not fit the model or never fires.

    Example::

        pictures = sweep(model, act_map, ["cat", "rocket"], [0, 0.5, 1], steps=20)
        pictures[1][2]  # the rocket at strength 1
    """
    if not strengths:
        raise MapError("The list of strengths is empty; give at least one, such as 0 and 1.")
    columns: list[list[Output]] = []
    for strength in strengths:
        with model.steer(act_map, strength, branch) as steering:
            columns.append(model.generate(prompts, **settings))
            steering.check()  # on leaving the block, a missing branch would only be a warning
        step()
    return [list(row) for row in zip(*columns, strict=True)]
