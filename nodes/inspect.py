"""Inspect ACT Map: what a map was fitted on, and where it acts."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..act_core import ActMap
from ..act_core.map_charts import depth_chart
from ..act_core.plots import effect_chart
from ..act_core.summary import describe
from .common import CATEGORY, ACTMapIO, aliases, pixels_of


class InspectACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InspectACTMap",
            display_name="Inspect ACT Map",
            category=CATEGORY,
            **aliases("activation transport", "map info", "show map"),
            description="Shows what a map was fitted on, for which model, and where it acts.",
            is_output_node=True,
            inputs=[ACTMapIO.Input("act_map", tooltip="A map from Load ACT Map or Fit ACT Map.")],
            outputs=[
                io.String.Output(display_name="report", tooltip="What the map is, and what it was fitted on."),
                io.Image.Output(display_name="effect", tooltip="How far the map shifts each site, in execution order."),
                io.Image.Output(
                    display_name="depth",
                    tooltip="How far the map moves each kind of layer in each block: norms, attention, MLP, whole "
                    "blocks and outputs.",
                ),
            ],
        )

    @classmethod
    def execute(cls, act_map: ActMap) -> io.NodeOutput:
        report = describe(act_map)
        effect, depth = pixels_of(effect_chart(act_map)), pixels_of(depth_chart(act_map))
        shown = {**ui.PreviewImage(depth, cls=cls).as_dict(), "text": (report,)}
        return io.NodeOutput(report, effect, depth, ui=shown)
