"""Fit ACT Map: two lists of prompts in, a map out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from comfy_api.latest import io

from ..act_core import ActMap
from ..act_core.summary import describe
from .common import CATEGORY, SITES, ACTMapIO, Progress, aliases, lines, method_inputs
from .host import fitting


class FitACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FitACTMap",
            display_name="Fit ACT Map",
            category=CATEGORY,
            **aliases("activation transport", "train map", "learn style", "make slider", "optimal transport"),
            description="Fits a map that carries what the model does for the source prompts onto what it does for the "
            "target prompts. Nothing is trained: every prompt runs through the model once.",
            inputs=[
                io.Model.Input("model", tooltip="The model to fit a map for. It is left as it is."),
                io.Clip.Input("clip", tooltip="Its text encoders, which read the prompts and may be steered, too."),
                io.String.Input(
                    "source", multiline=True, tooltip="What the map leads away from: prompts, one a line. 32 or more."
                ),
                io.String.Input(
                    "target",
                    multiline=True,
                    tooltip="What the map leads to: prompts, one a line. Best the same subjects, so that only what you "
                    "want differs.",
                ),
                io.Combo.Input(
                    "sites",
                    options=SITES,
                    default="auto",
                    tooltip="Which layers are steered. auto takes what works best for this kind of model.",
                ),
                io.Combo.Input(
                    "components",
                    options=["both", "model", "text"],
                    default="both",
                    tooltip="Steer the diffusion model, the text encoders, or both (strongest).",
                ),
                *method_inputs(),
                io.Int.Input(
                    "samples",
                    default=128,
                    min=2,
                    max=4096,
                    tooltip="Pictures a side. With more samples than prompts, prompts come again with new noise.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16384,
                    step=8,
                    tooltip="Of the pictures; 0 is the model's usual size.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=16384,
                    step=8,
                    tooltip="Of the pictures; 0 is the model's usual size.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Of the noise.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="An empty latent that sets the size instead, as video and audio models need.",
                ),
            ],
            outputs=[
                ACTMapIO.Output(display_name="act_map"),
                io.String.Output(display_name="report", tooltip="What was fitted, on what, and where it acts most."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        source: str,
        target: str,
        sites: str,
        components: str,
        estimator: str,
        order: str,
        support: str,
        samples: int,
        width: int,
        height: int,
        seed: int,
        latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        started = time.perf_counter()
        prompts = [lines(text, side, "Fit ACT Map") for text, side in ((source, "source"), (target, "target"))]
        shape = None
        if components != "text":
            fitting.check_model(model)
            shape = (
                fitting.empty_latent(model, width, height)
                if latent is None
                else fitting.fixed_latent(model, latent)[:1]
            )
        settings: dict[str, Any] = {"sites": sites, "estimator": estimator, "order": order, "support": support}
        settings["progress"] = Progress(parts=2 if components == "both" else 1)

        text_map = None
        if components != "model":
            own = [side[:samples] for side in prompts]
            text_map = fitting.fit_text(clip, *own, **settings)
        act_map = text_map
        if shape is not None:
            source_map = text_map if order == "causal" else None
            sides = [
                _samples(clip, side, samples, moved) for side, moved in zip(prompts, (source_map, None), strict=True)
            ]
            act_map = fitting.fit_model(model, shape, seed, *sides, **settings)
            act_map = act_map if text_map is None else text_map.joined(act_map)
        assert act_map is not None
        report = f"Fitted in {time.perf_counter() - started:.1f} s.\n{describe(act_map)}"
        logging.info("ACT Steering: fitted %d sites in %.1f s.", len(act_map), time.perf_counter() - started)
        return io.NodeOutput(act_map, report)


def _samples(clip: Any, prompts: Sequence[str], samples: int, text_map: ActMap | None) -> list[tuple[str, Any]]:
    """As many prompts as there are samples, with their conditioning."""
    own = prompts[:samples]
    encoded = zip(own, fitting.encode(clip, own, text_map), strict=True)
    return list(islice(cycle(encoded), samples))
