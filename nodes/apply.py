"""Apply ACT Steering: a map on a MODEL and a CLIP, or on the conditioning of a region."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from comfy_api.latest import io

from ..act_core import ActMap, MapError
from .common import CATEGORY, ACTMapIO, aliases, percent_input, strength_input
from .host.modules import DIFFUSION_MODEL
from .host.steering import Branch, ModelSteering, hook_group, steered_clip


class _NoCLIP:
    """Stands where no CLIP is connected, and says so when it is used; the host looks at all outputs, used or not."""

    def __getattr__(self, name: str) -> NoReturn:
        # No MapError: the host asks whether an output has this or that, and takes an AttributeError for a no.
        raise AttributeError(
            "Apply ACT Steering has no CLIP to give on, since none is connected to it; take the CLIP from its loader."
        )


class ApplyACTSteering(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyACTSteering",
            display_name="Apply ACT Steering",
            category=CATEGORY,
            **aliases("activation transport", "activation steering", "steer model", "style slider", "concept slider"),
            description="Puts a map on a model, as a LoRA loader does with a LoRA. Several in a row stack.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the map was fitted on, or a finetune of it."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Its text encoders. Use the steered CLIP for the positive prompt only: what is moved in "
                    "both prompts cancels.",
                ),
                ACTMapIO.Input("act_map"),
                strength_input(
                    "strength", "Of the map on the diffusion model: 0 is none, 1 the full move, negative the opposite."
                ),
                strength_input("strength_clip", "Of the map on the text encoders."),
                percent_input("start_percent", 0.0, "Where on the schedule the map begins to act."),
                percent_input("end_percent", 1.0, "Where on the schedule it ends."),
                io.Combo.Input(
                    "branch",
                    options=["positive", "both", "negative"],
                    default="positive",
                    tooltip="Which half is steered under guidance. Steering both moves less.",
                ),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(tooltip="Only where a CLIP is connected.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        act_map: ActMap,
        strength: float,
        strength_clip: float,
        start_percent: float,
        end_percent: float,
        branch: Branch,
        clip: Any = None,
    ) -> io.NodeOutput:
        _check(strength, strength_clip)
        steers_model = DIFFUSION_MODEL in act_map.components
        steers_clip = any(name != DIFFUSION_MODEL for name in act_map.components)
        if not steers_model and clip is None:
            raise MapError(
                f"This map moves {' and '.join(act_map.components)} and not the diffusion model; connect the CLIP that "
                "has it to Apply ACT Steering, or use ACT Steered Text if it is for a language model."
            )
        if steers_model:
            # The CLIP tells of its own sites; without one, they are listed as not connected.
            own = act_map if clip is None else act_map.restrict(f"{DIFFUSION_MODEL}/*")
            steering = ModelSteering(own, strength, start_percent, end_percent, branch)
            # A map for another model is refused at any strength, but at 0 the model is given on as it is.
            steered = steering.patched(model)
            model = steered if strength else model
        if clip is None:
            return io.NodeOutput(model, _NoCLIP())
        if steers_clip:
            steered = steered_clip(clip, act_map, strength_clip)
            clip = steered if strength_clip else clip
        return io.NodeOutput(model, clip)


class ApplyACTSteeringCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyACTSteeringCLIP",
            display_name="Apply ACT Steering (CLIP only)",
            category=CATEGORY,
            **aliases("activation transport", "steer text encoder", "steer prompt"),
            description="Puts the part of a map that moves text encoders on a CLIP.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders that the map was fitted on."),
                ACTMapIO.Input("act_map"),
                strength_input("strength_clip", "0 is none, 1 the full move, negative the opposite."),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, clip: Any, act_map: ActMap, strength_clip: float) -> io.NodeOutput:
        _check(strength_clip)
        steered = steered_clip(clip, act_map, strength_clip)
        return io.NodeOutput(steered if strength_clip else clip)


class CreateACTHook(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CreateACTHook",
            display_name="Create ACT Hook",
            category=CATEGORY,
            **aliases("activation transport", "regional steering", "steering keyframes"),
            description="A map as a hook for the conditioning of a region (Cond Set Props with a mask), with keyframes "
            "if you like (Set Hook Keyframes). It steers the diffusion model only, and costs one more call of the "
            "model at each step for each region.",
            inputs=[
                ACTMapIO.Input("act_map"),
                strength_input("strength", "Of the map; keyframes multiply it."),
                io.Hooks.Input("prev_hooks", optional=True, tooltip="Hooks to add this one to."),
            ],
            outputs=[io.Hooks.Output()],
        )

    @classmethod
    def execute(cls, act_map: ActMap, strength: float, prev_hooks: Any = None) -> io.NodeOutput:
        _check(strength)
        if DIFFUSION_MODEL not in act_map.components:
            raise MapError(
                "This map moves only text encoders, which a hook cannot; use Apply ACT Steering (CLIP only)."
            )
        # Only the hooked conditioning runs while the hook acts: all of it is to be moved.
        return io.NodeOutput(hook_group(ModelSteering(act_map, strength, branch="both"), prev_hooks))


def _check(*strengths: float) -> None:
    for strength in strengths:
        if not math.isfinite(strength):
            raise MapError(f"The strength is {strength}; it must be a finite number, such as 1.")
