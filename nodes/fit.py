"""Fit ACT Map: two lists of prompts in, a map out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, get_args

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..act_core import ActMap, MapError
from ..act_core.maps import Order, Support
from ..act_core.report import describe
from ..act_core.transport import Estimator
from .common import CATEGORY, ACTMapIO
from .host import fitting

SITES = ["auto", "attention", "mlp", "norms", "blocks", "all"]


class FitACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FitACTMap",
            display_name="Fit ACT Map",
            category=CATEGORY,
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
                io.Combo.Input(
                    "estimator",
                    options=list(get_args(Estimator)),
                    default="linear",
                    tooltip="linear shifts and scales each channel, mean shifts it, gaussian matches mean and spread.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(get_args(Order)),
                    default="causal",
                    tooltip="causal fits each layer while the layers before it are steered already.",
                ),
                io.Combo.Input(
                    "support",
                    options=list(get_args(Support)),
                    default="unbounded",
                    tooltip="unbounded to bring something into pictures; observed to remove something, acting only on "
                    "values that the source prompts showed.",
                ),
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
        prompts = [_lines(text, side) for text, side in ((source, "source"), (target, "target"))]
        shape = fitting.empty_latent(model, width, height) if latent is None else latent["samples"][:1]
        settings: dict[str, Any] = {"sites": sites, "estimator": estimator, "order": order, "support": support}
        settings["progress"] = _Progress(parts=2 if components == "both" else 1)

        text_map = None
        if components != "model":
            own = [side[:samples] for side in prompts]
            text_map = fitting.fit_text(clip, *own, **settings)
        act_map = text_map
        if components != "text":
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


def _lines(text: str, side: str) -> list[str]:
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if len(prompts) < 2:
        raise MapError(f"Fit ACT Map has {len(prompts)} {side} prompts; give at least two, one a line.")
    return prompts


def _samples(clip: Any, prompts: Sequence[str], samples: int, text_map: ActMap | None) -> list[tuple[str, Any]]:
    """As many prompts as there are samples, with their conditioning."""
    own = prompts[:samples]
    encoded = zip(own, fitting.encode(clip, own, text_map), strict=True)
    return list(islice(cycle(encoded), samples))


class _Progress:
    """The progress bar of the node; an interrupt of the user ends the fit at the next site."""

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._part = -1
        self._bar = comfy.utils.ProgressBar(100 * parts)

    def __call__(self, done: int, total: int, site: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if done == 1:
            self._part = min(self._part + 1, self._parts - 1)
        self._bar.update_absolute(100 * self._part + 100 * done // total)
