"""Several maps on one MODEL and CLIP, for Apply ACT Steering."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...act_core import ActMap, MapError
from .steering import Applied, NoCLIP


@dataclass(frozen=True)
class StackedMap:
    """A map of a stack.

    Attributes:
        row: where it stands in a node, for reports and errors.
        act_map: the map.
        strength: multiplies both strengths of the node that applies the stack.
    """

    row: str
    act_map: ActMap
    strength: float


@dataclass(frozen=True)
class MapStack:
    """Maps to be applied in this order.

    Attributes:
        maps: those that are on.
    """

    maps: Sequence[StackedMap] = ()

    def __repr__(self) -> str:
        # Some nodes of other packs show whatever is connected.
        return f"<MapStack: {', '.join(entry.row for entry in self.maps) or 'empty'}>"


def steered_by_stack(model: Any, clip: Any | None, stack: MapStack, apply: Callable[..., Applied]) -> Applied:
    """Apply the maps of a stack one after the other.

    Args:
        model: a MODEL.
        clip: a CLIP; None if none is connected.
        stack: of maps.
        apply: ``(model, clip, map, factor)`` applies one map, with its strengths multiplied by the factor.

    Raises:
        MapError: a map cannot be applied; the message names its row.
    """
    lines = [] if stack.maps else ["The stack has no map that is on; nothing is steered."]
    applied = Applied(model, NoCLIP() if clip is None else clip, "", None, None)
    for entry in stack.maps:
        with errors_of(entry.row):
            applied = apply(applied.model, None if clip is None else applied.clip, entry.act_map, entry.strength)
        lines += [f"{entry.row}:", *(f"  {line}" for line in applied.report.splitlines())]
    return Applied(applied.model, applied.clip, "\n".join(lines), None, None)


@contextmanager
def errors_of(row: str) -> Generator[None, None, None]:
    """Name the row of a stack in the errors of our own that are raised inside."""
    try:
        yield
    except MapError as error:
        raise type(error)(f"{row}: {error}") from error
