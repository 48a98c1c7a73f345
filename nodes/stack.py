"""ACT Map Stack: several maps, each with its strength and a switch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from comfy_api.latest import io

from ..act_core import ActMap, load_map
from ..act_core.errors import MapFileError
from ..act_core.settings import as_strength
from .common import CATEGORY, STRENGTH, ACTMapIO, ACTMapStackIO, aliases, outside_limits, strength_input
from .host import folders
from .host.stack import MapStack, StackedMap, errors_of

_NAME = "ACT Map Stack"
# A fixed number. The host's growing inputs repeat a single input, not a row of three, and the oldest supported host has
# none; their names would differ from host to host, and with them saved workflows and the API form.
ROWS = 8
_NONE = "None"


class ACTMapStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [_NONE, *folders.names(folders.MAPS)]
        return io.Schema(
            node_id="ACTMapStack",
            display_name=_NAME,
            category=CATEGORY,
            **aliases("activation transport", "lora stack", "stack maps", "multiple maps", "style mixer"),
            description="Holds several maps, each with a strength and a switch, for Apply ACT Steering. Connect "
            "another stack to act_maps for more rows.",
            inputs=[
                io.MultiType.Input(
                    "act_maps",
                    types=[ACTMapStackIO, ACTMapIO],
                    optional=True,
                    tooltip="A stack, or a single map, that is applied before the rows of this node.",
                ),
                *(part for number in range(1, ROWS + 1) for part in _row(number, names)),
            ],
            outputs=[
                ACTMapStackIO.Output(display_name="act_maps", tooltip="For Apply ACT Steering, or another stack."),
                io.String.Output(display_name="report", tooltip="The maps that are on, with their recommended ranges."),
            ],
        )

    @classmethod
    def validate_inputs(cls, **rows: Any) -> bool | str:
        """In place of the host's own check, which refuses a missing file even in a row that is off."""
        for number in range(1, ROWS + 1):
            name, _, on = _values(rows, number)
            if isinstance(name, str) and on and name not in (_NONE, *folders.names(folders.MAPS)):
                return f"{_label(number)}: there is no map {name}; put it into models/act_maps, or choose another one."
        return outside_limits({name: value for name, value in rows.items() if name.startswith("strength_")})

    @classmethod
    def fingerprint_inputs(cls, **rows: Any) -> str:
        return " ".join(_hash(name) for name in _named(rows))

    @classmethod
    def execute(cls, act_maps: ActMap | MapStack | None = None, **rows: Any) -> io.NodeOutput:
        maps = list(act_maps.maps) if isinstance(act_maps, MapStack) else []
        if isinstance(act_maps, ActMap):
            maps.append(StackedMap(f"The map connected to {_NAME}", act_maps, 1.0))
        for number, name, strength in _used(rows):
            row = f"{_label(number)}, {name}"
            with errors_of(row):
                maps.append(StackedMap(row, load_map(folders.find(folders.MAPS, name)), as_strength(strength)))
        report = "\n".join(map(_described, maps)) or "No map is on."
        return io.NodeOutput(MapStack(maps), report, ui={"text": (report,)})


def _row(number: int, names: list[str]) -> list[io.Input]:
    """The inputs of one row; optional, so that a workflow in API form may leave out those that it does not use."""
    return [
        io.Combo.Input(f"map_{number}", options=names, default=_NONE, optional=True, tooltip="A map file, or None."),
        strength_input(f"strength_{number}", f"Strength of this map. {STRENGTH}", optional=True),
        io.Boolean.Input(f"on_{number}", default=True, optional=True, tooltip="Whether this map acts."),
    ]


def _label(number: int) -> str:
    return f"Row {number} of {_NAME}"


def _values(rows: Mapping[str, Any], number: int) -> tuple[Any, Any, Any]:
    return rows.get(f"map_{number}", _NONE), rows.get(f"strength_{number}", 1.0), rows.get(f"on_{number}", True)


def _used(rows: Mapping[str, Any]) -> Iterator[tuple[int, str, float]]:
    """Number, file name and strength of the rows that are on."""
    for number in range(1, ROWS + 1):
        name, strength, on = _values(rows, number)
        if on and name not in (None, _NONE):
            yield number, name, strength


def _named(rows: Mapping[str, Any]) -> Iterator[str]:
    """File names of the rows that are on, or that another node turns on or off, which has not run yet."""
    for number in range(1, ROWS + 1):
        name, _, on = _values(rows, number)
        if (on or on is None) and name not in (None, _NONE):
            yield name


def _hash(name: str) -> str:
    """Of a file; empty if there is none, which is an error only where its row is on."""
    try:
        return folders.sha256(name)
    except MapFileError:
        return ""


def _described(entry: StackedMap) -> str:
    ends = entry.act_map.card.strength_range
    advice = "no recommended range" if ends is None else f"{ends[0]:g} to {ends[1]:g} recommended"
    return f"{entry.row}: strength {entry.strength:g}, {advice}."
