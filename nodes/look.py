"""Inspect ACT Map and Edit ACT Map."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..act_core import ActMap
from ..act_core.plots import effect_chart
from ..act_core.summary import describe
from .common import CATEGORY, ACTMapIO, aliases


class InspectACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InspectACTMap",
            display_name="Inspect ACT Map",
            category=CATEGORY,
            **aliases("activation transport", "map info", "show map"),
            description="Tells what a map was fitted on and for which model, and shows where it acts.",
            is_output_node=True,
            inputs=[ACTMapIO.Input("act_map")],
            outputs=[
                io.String.Output(display_name="report"),
                io.Image.Output(display_name="effect", tooltip="How far each site is moved, in the order they run."),
            ],
        )

    @classmethod
    def execute(cls, act_map: ActMap) -> io.NodeOutput:
        report = describe(act_map)
        chart = torch.from_numpy(np.asarray(effect_chart(act_map), dtype=np.float32) / 255)[None]
        return io.NodeOutput(report, chart, ui={**ui.PreviewImage(chart, cls=cls).as_dict(), "text": (report,)})


class EditACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EditACTMap",
            display_name="Edit ACT Map",
            category=CATEGORY,
            **aliases("activation transport", "invert map", "scale map", "negate"),
            description="Turns a map around, so that it leads from target to source, or scales it.",
            inputs=[
                ACTMapIO.Input("act_map"),
                io.Boolean.Input("invert", default=False, tooltip="From target to source: the exact way back."),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    tooltip="The strength that is to be strength 1 from now on.",
                ),
            ],
            outputs=[ACTMapIO.Output(display_name="act_map")],
        )

    @classmethod
    def execute(cls, act_map: ActMap, invert: bool, scale: float) -> io.NodeOutput:
        if invert:
            act_map = act_map.inverse()
        return io.NodeOutput(act_map if scale == 1 else act_map.scaled(scale))
