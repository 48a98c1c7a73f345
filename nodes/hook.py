"""Create ACT Hook: a map on the conditioning of a region."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..act_core import ActMap
from .common import CATEGORY, STRENGTH, ACTMapIO, WithStrengths, aliases, calibrated_input, strength_input
from .host.hooks import hook_group
from .host.steering import on_even_scale


class CreateACTHook(WithStrengths, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CreateACTHook",
            display_name="Create ACT Hook",
            category=CATEGORY,
            **aliases("activation transport", "regional steering", "steering keyframes"),
            description="Makes a hook from a map, for the conditioning of a region (Cond Set Props with a mask), with "
            "optional keyframes (Set Hook Keyframes). It steers only the diffusion model. Each region costs one more "
            "model call per step.",
            inputs=[
                ACTMapIO.Input("act_map", tooltip="A map from Load ACT Map or Fit ACT Map."),
                strength_input("strength", f"{STRENGTH} Keyframes multiply it."),
                io.Hooks.Input("prev_hooks", optional=True, tooltip="Hooks to add this one to."),
                calibrated_input(),
            ],
            outputs=[io.Hooks.Output(tooltip="For Cond Set Props, or for the next hook.")],
        )

    @classmethod
    def execute(
        cls, act_map: ActMap, strength: float, prev_hooks: Any = None, calibrated: bool = False
    ) -> io.NodeOutput:
        if calibrated:
            act_map, strength, _ = on_even_scale(act_map, strength, 0.0)
        return io.NodeOutput(hook_group(act_map, strength, prev_hooks))
