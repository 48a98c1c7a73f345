"""Export ACT Map As LoRA."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..act_core import ActMap
from ..act_core.interop.lora import LinearLayers, lora_tensors, save_lora
from .common import CATEGORY, ACTMapIO, aliases
from .host import folders
from .host.weights import folded

_NO_LEVEL = -1.0


class ExportACTMapAsLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExportACTMapAsLoRA",
            display_name="Export ACT Map As LoRA",
            category=CATEGORY,
            **aliases("activation transport", "save as lora", "convert map", "bake map"),
            description="Saves a map as a small LoRA in models/loras, for people who do not have these nodes. Load "
            "LoRA applies it like the map with branch both. Files are never overwritten.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the map is for, with the LoRAs that it is used with."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Its text encoders; without them, their part is left out."
                ),
                ACTMapIO.Input("act_map", tooltip="The map to export."),
                io.String.Input(
                    "name",
                    default="my_map",
                    tooltip="File name, without .safetensors; styles/ink saves into a subfolder.",
                ),
                io.Combo.Input(
                    "linear_layers",
                    options=list(get_args(LinearLayers)),
                    default="compact",
                    tooltip="compact stores three numbers a channel. whole stores the change of each weight, which is "
                    "as large as these layers; only bypass loaders need it.",
                ),
                io.Float.Input(
                    "level",
                    default=_NO_LEVEL,
                    min=_NO_LEVEL,
                    max=1.0,
                    step=0.01,
                    tooltip="Only for a map with several noise levels: the level from 0 to 1 of which the nearest acts "
                    "at every step. -1 refuses such maps.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="name", tooltip="The name under which Load LoRA lists it."),
                io.String.Output(display_name="report", tooltip="What was exported, and what could not be."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        act_map: ActMap,
        name: str,
        linear_layers: LinearLayers,
        level: float,
        clip: Any = None,
    ) -> io.NodeOutput:
        found = folded(model, clip, act_map, None if level < 0 else level, linear_layers=linear_layers)
        tensors = lora_tensors(found, linear_layers=linear_layers)
        path = folders.new_lora(name)
        save_lora(found, tensors, path)
        lines = [f"Saved {path} ({path.stat().st_size / 1e6:.2f} MB).", found.report]
        if any(key.endswith(".rescale") for key in tensors):
            lines.append("Bypass loaders read it wrongly; export with linear_layers set to whole for those.")
        report = "\n".join(lines)
        return io.NodeOutput(folders.listed_name(path, folders.LORAS), report, ui={"text": (report,)})
