"""Blend ACT Maps: one map from up to four maps of one model, each with a weight."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..act_core import MapError
from ..act_core.blending import blend
from .common import CATEGORY, MAX_STRENGTH, ACTMapIO, aliases

_NAME = "Blend ACT Maps"
# A fixed number, as in ACT Map Stack.
MAPS = 4


class BlendACTMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BlendACTMaps",
            display_name=_NAME,
            category=CATEGORY,
            **aliases("activation transport", "merge maps", "mix maps", "average maps"),
            description="Makes one map of several maps of one model, each with a weight. It can be saved like any "
            "other map.",
            inputs=[part for number in range(1, MAPS + 1) for part in _row(number)],
            outputs=[ACTMapIO.Output(display_name="act_map", tooltip="The blend.")],
        )

    @classmethod
    def execute(cls, **rows: Any) -> io.NodeOutput:
        numbers = [number for number in range(1, MAPS + 1) if rows.get(f"act_map_{number}") is not None]
        if len(numbers) < 2:
            raise MapError(f"{_NAME} has {len(numbers)} map; connect at least two, or scale one with Edit ACT Map.")
        return io.NodeOutput(blend([(rows[f"act_map_{n}"], rows.get(f"weight_{n}", 0.5)) for n in numbers]))


def _row(number: int) -> list[io.Input]:
    optional = number > 2
    return [
        ACTMapIO.Input(f"act_map_{number}", optional=optional, tooltip="A map from Load ACT Map or Fit ACT Map."),
        io.Float.Input(
            f"weight_{number}",
            default=0.5,
            min=-MAX_STRENGTH,
            max=MAX_STRENGTH,
            step=0.01,
            optional=optional,
            tooltip="How much of this map goes into the blend: 1 adds it in full, as a strength of 1 would.",
        ),
    ]
