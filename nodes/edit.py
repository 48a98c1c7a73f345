"""Edit ACT Map: inverts or scales a map."""

from __future__ import annotations

from comfy_api.latest import io

from ..act_core import ActMap
from .common import CATEGORY, MAX_STRENGTH, ACTMapIO, aliases


class EditACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EditACTMap",
            display_name="Edit ACT Map",
            category=CATEGORY,
            **aliases("activation transport", "invert map", "scale map", "negate"),
            description="Inverts a map, so that it goes from target to source, or scales it.",
            inputs=[
                ACTMapIO.Input("act_map", tooltip="A map from Load ACT Map or Fit ACT Map."),
                io.Boolean.Input(
                    "invert",
                    default=False,
                    tooltip="Map from target to source. This is the exact inverse; strength -1 only approximates it.",
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=-MAX_STRENGTH,
                    max=MAX_STRENGTH,
                    step=0.01,
                    tooltip="This strength becomes the new 1.",
                ),
            ],
            outputs=[ACTMapIO.Output(display_name="act_map", tooltip="The edited map.")],
        )

    @classmethod
    def execute(cls, act_map: ActMap, invert: bool, scale: float) -> io.NodeOutput:
        if invert:
            act_map = act_map.inverse()
        return io.NodeOutput(act_map if scale == 1 else act_map.scaled(scale))
