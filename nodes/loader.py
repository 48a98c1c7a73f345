"""Load and Apply ACT Map: a map file on a MODEL and a CLIP, laid out like a LoRA loader."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..act_core import load_map
from .common import (
    CATEGORY,
    STRENGTH,
    WithStrengths,
    aliases,
    calibrated_input,
    steered_clip_input,
    strength_input,
)
from .host import folders
from .host.steering import Window, steered
from .map_cards import shown_card, summary_of


class ACTMapLoader(WithStrengths, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ACTMapLoader",
            display_name="Load and Apply ACT Map",
            category=CATEGORY,
            **aliases("activation transport", "style slider", "load steering map", "lora loader"),
            description="Loads a map and applies it to a model, as a LoRA loader does a LoRA. Chain several to stack "
            "maps. Load ACT Map and Apply ACT Steering do the same in two nodes, with more settings.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the map was fitted on, or a finetune of it."),
                steered_clip_input(),
                io.Combo.Input("name", options=folders.names(folders.MAPS), tooltip="The map file."),
                strength_input("strength", f"Strength on the diffusion model. {STRENGTH}"),
                strength_input("strength_clip", f"Strength on the text encoders. {STRENGTH}"),
                calibrated_input(),
            ],
            outputs=[
                io.Model.Output(tooltip="The steered model."),
                io.Clip.Output(tooltip="The steered text encoders; only available when a CLIP is connected."),
                io.String.Output(display_name="report", tooltip="The map, its recommended range, and what it found."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **_: Any) -> str:
        return folders.fingerprint(folders.MAPS, name)

    @classmethod
    def execute(
        cls,
        model: Any,
        name: str,
        strength: float,
        strength_clip: float,
        clip: Any = None,
        calibrated: bool = False,
    ) -> io.NodeOutput:
        act_map = load_map(folders.find(folders.MAPS, name))
        applied = steered(model, clip, act_map, strength, strength_clip, Window(), calibrated=calibrated)
        report = f"{summary_of(act_map)}\n{applied.report}"
        return io.NodeOutput(applied.model, applied.clip, report, ui=shown_card(act_map, report, cls))
