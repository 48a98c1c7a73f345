"""Fit ACT Map: two lists of prompts in, a map out."""

from __future__ import annotations

import logging
import time
from typing import Any, get_args

from comfy_api.latest import io

from ..act_core.settings import MAX_SEED, Components, FitSettings
from ..act_core.summary import describe
from .common import (
    CATEGORY,
    MAX_PROMPTS,
    ACTMapIO,
    aliases,
    method_inputs,
    only,
    pattern_input,
    prompts_of,
    sites_input,
    size_inputs,
)
from .host.fitting import PromptFit

_NAME = "Fit ACT Map"


class FitACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FitACTMap",
            display_name=_NAME,
            category=CATEGORY,
            **aliases("activation transport", "train map", "learn style", "make slider", "optimal transport"),
            description="Fits a map from what the model does for the source prompts to what it does for the "
            "target prompts. Nothing is trained: the prompts only run through the model.",
            # Nodes with many texts return a list, which should give one fit of all of them, not one fit each.
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to fit a map for. It is left unchanged."),
                io.Clip.Input("clip", tooltip="Its text encoders, which read the prompts and can be steered as well."),
                io.String.Input(
                    "source",
                    multiline=True,
                    tooltip="What to move away from: 32 prompts or more, one per line. Lines that begin with # "
                    "are comments.",
                ),
                io.String.Input(
                    "target",
                    multiline=True,
                    tooltip="What to move towards, one prompt per line. Use the same subjects as in the source, so "
                    "that only what you want differs.",
                ),
                sites_input(),
                io.Combo.Input(
                    "components",
                    options=list(get_args(Components)),
                    default="both",
                    tooltip="What to steer: the diffusion model, the text encoders, or both (strongest).",
                ),
                *method_inputs(),
                *_picture_inputs(),
            ],
            outputs=[
                ACTMapIO.Output(display_name="act_map", tooltip="The map."),
                io.String.Output(display_name="report", tooltip="What was fitted, on what, and where it acts most."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        source: Any,
        target: Any,
        sites: Any,
        components: Any,
        estimator: Any,
        order: Any,
        support: Any,
        samples: Any,
        width: Any,
        height: Any,
        seed: Any,
        latent: Any = None,
        pattern: Any = "",
    ) -> io.NodeOutput:
        started = time.perf_counter()
        sites = only("pattern", pattern).strip() or only("sites", sites)
        method = {"sites": sites, "estimator": estimator, "order": order, "support": support, "seed": seed}
        fit = PromptFit(
            model=only("model", model),
            clip=only("clip", clip),
            source=prompts_of(source, "source", _NAME),
            target=prompts_of(target, "target", _NAME),
            components=only("components", components),
            samples=only("samples", samples),
            settings=FitSettings(**{name: only(name, value) for name, value in method.items()}),
        )
        act_map = fit.run(only("width", width), only("height", height), only("latent", latent))
        seconds = time.perf_counter() - started
        logging.info("ACT Steering: fitted %d sites in %.1f s.", len(act_map), seconds)
        report = "\n".join(filter(None, (f"Fitted in {seconds:.1f} s.", fit.unused, describe(act_map))))
        return io.NodeOutput(act_map, report, ui={"text": (report,)})


def _picture_inputs() -> list[io.Input]:
    """Inputs for the pictures that the fit runs on."""
    return [
        io.Int.Input(
            "samples",
            default=128,
            min=2,
            max=MAX_PROMPTS,
            tooltip="Pictures per side. Fewer prompts are repeated with new noise; prompts beyond this number are not "
            "used.",
        ),
        *size_inputs(),
        io.Int.Input(
            "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False, tooltip="Seed of the noise."
        ),
        io.Latent.Input(
            "latent",
            optional=True,
            tooltip="An empty latent that sets the size instead. Audio models need one. Without it, video models are "
            "fitted on a single frame.",
        ),
        pattern_input(),
    ]
