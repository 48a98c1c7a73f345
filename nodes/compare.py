"""Compare ACT Maps: which sites two maps share, and how alike they move them."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..act_core import ActMap
from ..act_core.comparison import compare
from ..act_core.map_charts import comparison_chart
from .common import CATEGORY, ACTMapIO, aliases, pixels_of


class CompareACTMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CompareACTMaps",
            display_name="Compare ACT Maps",
            category=CATEGORY,
            **aliases("activation transport", "cosine similarity", "overlap of maps", "diff maps"),
            description="Shows which layers two maps share, and the angle and the sizes of their displacements there.",
            is_output_node=True,
            inputs=[
                ACTMapIO.Input("act_map_a", tooltip="A map from Load ACT Map or Fit ACT Map."),
                ACTMapIO.Input("act_map_b", tooltip="Another map, of the same model."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="A line for each shared layer, and what only one has."),
                io.Image.Output(
                    display_name="comparison",
                    tooltip="A row for each shared layer: the cosine of the angle, and a bar for the size of each map.",
                ),
            ],
        )

    @classmethod
    def execute(cls, act_map_a: ActMap, act_map_b: ActMap) -> io.NodeOutput:
        found = compare(act_map_a, act_map_b)
        chart, report = pixels_of(comparison_chart(found)), str(found)
        return io.NodeOutput(report, chart, ui={**ui.PreviewImage(chart, cls=cls).as_dict(), "text": (report,)})
