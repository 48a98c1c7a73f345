"""Load and Apply ACT Map: a map file on a MODEL and a CLIP, laid out like a LoRA loader."""

from __future__ import annotations

import io as bytes_io
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..act_core import ActMap, load_map
from ..act_core.text import shorten
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


class ACTMapLoader(WithStrengths, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ACTMapLoader",
            display_name="Load and Apply ACT Map",
            category=CATEGORY,
            **aliases("activation transport", "style slider", "load steering map", "lora loader"),
            description="Loads a map and applies it to a model, as a LoRA loader does a LoRA. Chain several to stack "
            "maps. Load ACT Map and Apply ACT Steering do the same apart, with more settings.",
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
    def fingerprint_inputs(cls, name: str, **_: Any) -> str:
        return folders.sha256(name)

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
        report = f"{_described(act_map)}\n{applied.report}"
        shown: dict[str, Any] = {"text": (report,)}
        if act_map.card.cover:
            shown |= ui.PreviewImage(_pixels(act_map.card.cover), cls=cls).as_dict()
        return io.NodeOutput(applied.model, applied.clip, report, ui=shown)


def _described(act_map: ActMap) -> str:
    ends = act_map.card.strength_range
    title = shorten(act_map.card.title, 60) or "This map"
    return f"{title}: no recommended range." if ends is None else f"{title}: {ends[0]:g} to {ends[1]:g} recommended."


def _pixels(jpeg: bytes) -> torch.Tensor:
    """A picture as the host has it: ``[1, height, width, 3]``, from 0 to 1."""
    with Image.open(bytes_io.BytesIO(jpeg)) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]
