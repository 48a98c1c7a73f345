"""Apply ACT Steering: a map on a MODEL and a CLIP, or on a CLIP alone."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..act_core import ActMap
from ..act_core.selection import Blocks, SiteSelection
from ..act_core.settings import Branch
from .common import (
    CATEGORY,
    STRENGTH,
    ACTMapIO,
    ACTMapStackIO,
    WithStrengths,
    aliases,
    branch_input,
    calibrated_input,
    one_text,
    percent_input,
    steered_clip_input,
    strength_input,
)
from .host.schedule import Shape, Window
from .host.stack import MapStack, steered_by_stack
from .host.steering import Applied, steered, steered_encoders

_REPORT = "What the map found in this model, and warnings. How many sites fired is in the console after each run."


class ApplyACTSteering(WithStrengths, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyACTSteering",
            display_name="Apply ACT Steering",
            category=CATEGORY,
            **aliases("activation transport", "activation steering", "steer model", "style slider", "concept slider"),
            description="Applies a map to a model, as a LoRA loader applies a LoRA. Chain several to stack maps.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the map was fitted on, or a finetune of it."),
                steered_clip_input(),
                io.MultiType.Input(
                    "act_map",
                    types=[ACTMapIO, ACTMapStackIO],
                    tooltip="A map from Load ACT Map or Fit ACT Map, or several from ACT Map Stack.",
                ),
                strength_input("strength", f"Strength on the diffusion model. {STRENGTH}"),
                strength_input("strength_clip", f"Strength on the text encoders. {STRENGTH}"),
                percent_input("start_percent", 0.0, "Point of the sampling schedule at which the map starts to act."),
                percent_input("end_percent", 1.0, "Point of the sampling schedule at which the map stops."),
                branch_input("The half of the batch to steer under guidance (CFG). Steering both has less effect."),
                *_selection_inputs(),
                calibrated_input(),
                io.Boolean.Input(
                    "as_weights",
                    default=False,
                    optional=True,
                    tooltip="Put the map into the weights, as a LoRA loader does: no cost per step, on both branches "
                    "and at every step. Set branch to both. The report lists layers that cannot be changed this way.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The steered model."),
                io.Clip.Output(tooltip="The steered text encoders; only available when a CLIP is connected."),
                io.String.Output(display_name="report", tooltip=_REPORT),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        act_map: ActMap | MapStack,
        strength: float,
        strength_clip: float,
        start_percent: float,
        end_percent: float,
        branch: Branch,
        clip: Any = None,
        sites: str = "",
        blocks: Blocks = "all",
        schedule: Shape = "constant",
        curve: Any = None,
        calibrated: bool = False,
        as_weights: bool = False,
    ) -> io.NodeOutput:
        window = Window(start_percent, end_percent, schedule, None if curve is None else curve.interp)
        selection = SiteSelection(one_text(sites, "sites", "Apply ACT Steering"), blocks)

        def apply(model: Any, clip: Any, act_map: ActMap, factor: float = 1.0) -> Applied:
            strengths = factor * strength, factor * strength_clip
            flags = {"calibrated": calibrated, "as_weights": as_weights}
            return steered(model, clip, act_map, *strengths, window, branch, selection, **flags)

        if isinstance(act_map, MapStack):
            applied = steered_by_stack(model, clip, act_map, apply)
        else:
            applied = apply(model, clip, act_map)
        return io.NodeOutput(applied.model, applied.clip, applied.report, ui={"text": (applied.report,)})


def _selection_inputs() -> list[io.Input]:
    """Where in the model a map acts, and how its strength changes; optional, as they came after the other inputs."""
    return [
        io.String.Input(
            "sites",
            default="",
            optional=True,
            tooltip="Only these layers of the map: comma-separated patterns such as diffusion_model/* or *attn*. Empty "
            "steers all; Inspect ACT Map lists their names.",
        ),
        io.Combo.Input(
            "blocks",
            options=list(get_args(Blocks)),
            default="all",
            optional=True,
            tooltip="Only this third of the blocks, in the order in which they run; each text encoder is divided by "
            "itself.",
        ),
        io.Combo.Input(
            "schedule",
            options=list(get_args(Shape)),
            default="constant",
            optional=True,
            tooltip="How the strength on the diffusion model changes from start_percent to end_percent.",
        ),
        # Not a curve that is drawn on the node itself, which older hosts do not have.
        io.Custom("CURVE").Input(
            "curve",
            optional=True,
            extra_dict={"forceInput": True},
            tooltip="In place of schedule: a curve from Curve Editor, by which the strength is multiplied from "
            "start_percent (left) to end_percent (right).",
        ),
    ]


class ApplyACTSteeringCLIP(WithStrengths, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyACTSteeringCLIP",
            display_name="Apply ACT Steering (CLIP only)",
            category=CATEGORY,
            **aliases("activation transport", "steer text encoder", "steer prompt"),
            description="Applies the part of a map that steers text encoders to a CLIP.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders that the map was fitted on."),
                ACTMapIO.Input("act_map", tooltip="A map from Load ACT Map or Fit ACT Map."),
                strength_input("strength_clip", f"Strength on the text encoders. {STRENGTH}"),
                calibrated_input(),
            ],
            outputs=[
                io.Clip.Output(tooltip="The steered text encoders."),
                io.String.Output(display_name="report", tooltip=_REPORT),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, act_map: ActMap, strength_clip: float, calibrated: bool = False) -> io.NodeOutput:
        clip, report = steered_encoders(clip, act_map, strength_clip, calibrated=calibrated)
        return io.NodeOutput(clip, report, ui={"text": (report,)})
