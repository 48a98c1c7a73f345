"""Calibrate ACT Map: the recommended range of a map, and a scale on which equal steps look equal."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..act_core import ActMap, calibrate
from ..act_core.calibrating import SUBJECTS
from ..act_core.plots import calibration_chart
from ..act_core.prompts import prompt_lines
from ..act_core.settings import MAX_SEED, Branch
from ..act_core.summary import describe_calibration
from .common import CATEGORY, ACTMapIO, aliases, branch_input, one_text, pixels_of, size_inputs
from .host.calibration import HostCalibration
from .host.fitting import check_model
from .host.latents import empty_latent
from .host.progress import FitProgress
from .host.sampling import samplers, schedulers

_NAME = "Calibrate ACT Map"


class CalibrateACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibrateACTMap",
            display_name=_NAME,
            category=CATEGORY,
            **aliases("activation transport", "strength range", "even slider", "measure map"),
            description="Samples a few subjects at several strengths of a map, and measures how far they move towards "
            "its target and how much of their content stays. The map that it returns knows its recommended range, what "
            "a negative strength does, and a scale with even steps, which other nodes use when calibrated is on.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The unsteered model: the calibration applies the map itself."),
                io.Clip.Input("clip", tooltip="Its unsteered text encoders."),
                ACTMapIO.Input("act_map", tooltip="A map from Load ACT Map or a node that fits one."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip=f"Subjects to sample, one per line: three or more. If empty, the first {SUBJECTS} source "
                    "and target prompts that the map was fitted on.",
                ),
                io.String.Input(
                    "targets",
                    multiline=True,
                    default="",
                    tooltip="The same subjects as the map should make them, one for each prompt, such as with the name "
                    "of the style. If empty, the effect is measured along the way that the map itself takes.",
                ),
                io.String.Input("negative", default="", multiline=True, tooltip="The negative prompt."),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps of each picture."),
                io.Float.Input("cfg", default=4.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance scale."),
                io.Combo.Input("sampler_name", options=samplers(), default="euler", tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=schedulers(), default="simple", tooltip="As in KSampler."),
                *size_inputs(),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False, tooltip="Seed of the noise."
                ),
                branch_input(optional=True),
            ],
            outputs=[
                ACTMapIO.Output(display_name="act_map", tooltip="The map with its calibration; Save ACT Map keeps it."),
                io.Image.Output(display_name="curve", tooltip="Effect and content kept at each strength."),
                io.String.Output(display_name="report", tooltip="The recommended range, and what was measured."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        act_map: ActMap,
        prompts: str,
        targets: str,
        negative: str,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        seed: int,
        branch: Branch = "positive",
    ) -> io.NodeOutput:
        check_model(model)
        given = {"prompts": prompts, "targets": targets}
        sides = [prompt_lines(one_text(text, name, _NAME)) for name, text in given.items()]
        empty = empty_latent(model, width, height)
        sampling = seed, steps, cfg, sampler_name, scheduler
        calibration = HostCalibration(model, clip, empty, negative, *sampling, branch)
        calibrated = calibrate(calibration, act_map, *sides, progress=FitProgress())
        report = _report(calibrated)
        chart = pixels_of(calibration_chart(calibrated.calibrated))
        shown = {**ui.PreviewImage(chart, cls=cls).as_dict(), "text": (report,)}
        return io.NodeOutput(calibrated, chart, report, ui=shown)


def _report(act_map: ActMap) -> str:
    found = act_map.calibrated
    lines = [describe_calibration(found) + ".", "", f"{'strength':>8}  {'effect':>6}  {'kept':>6}"]
    rows = zip(found.strengths, found.effects, found.kept, strict=True)
    return "\n".join([*lines, *(f"{strength:8g}  {effect:6.2f}  {kept:6.2f}" for strength, effect, kept in rows)])
