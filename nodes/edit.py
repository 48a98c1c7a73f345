"""Edit ACT Map: inverts, scales or prunes a map."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..act_core import ActMap
from ..act_core.blending import Unit
from .common import CATEGORY, MAX_STRENGTH, ACTMapIO, aliases


class EditACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EditACTMap",
            display_name="Edit ACT Map",
            category=CATEGORY,
            **aliases("activation transport", "invert map", "scale map", "negate", "prune map"),
            description="Inverts a map, so that it goes from target to source, scales it, or keeps only what carries "
            "most of its effect.",
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
                io.Float.Input(
                    "keep",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Keeps the fewest layers or channels that carry this share of the effect; 1 keeps all.",
                ),
                io.Combo.Input(
                    "keep_by",
                    options=list(get_args(Unit)),
                    default="sites",
                    optional=True,
                    tooltip="What keep chooses: sites drops whole layers, which makes the file smaller; channels turns "
                    "single channels off.",
                ),
            ],
            outputs=[ACTMapIO.Output(display_name="act_map", tooltip="The edited map.")],
        )

    @classmethod
    def execute(
        cls, act_map: ActMap, invert: bool, scale: float, keep: float = 1.0, keep_by: Unit = "sites"
    ) -> io.NodeOutput:
        # First, because a scaled map has no statistics to measure its effect by.
        act_map = act_map.pruned(keep, keep_by)
        if invert:
            act_map = act_map.inverse()
        return io.NodeOutput(act_map if scale == 1 else act_map.scaled(scale))
