"""Fit ACT Map From Images: pictures of a style in, a map out."""

from __future__ import annotations

import logging
import time
from typing import Any

from comfy_api.latest import io

from ..act_core import ActMap
from ..act_core.errors import NotDifferentiableError
from ..act_core.fitting.pictures import fallback
from ..act_core.levels import LEVELS, parsed_levels
from ..act_core.naming import subjects
from ..act_core.settings import MAX_SEED, FitSettings, RefineSettings
from ..act_core.summary import describe
from .common import CATEGORY, MAX_PROMPTS, ACTMapIO, aliases, one_text, only, pattern_input, sites_input, size_inputs
from .host.fitting import check_model
from .host.image_fitting import ImageFit, ImageTransport
from .host.naming import EncodedWords, encoded_words
from .picture_inputs import PictureInputs, check_sides

_NAME = "Fit ACT Map From Images"
_MAX_STEPS = 10000
_ESTIMATORS = "refined", "transport"
_LEVELS = ", ".join(f"{level:g}" for level in LEVELS)


class FitACTMapFromImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FitACTMapFromImages",
            display_name=_NAME,
            category=CATEGORY,
            **aliases("style from pictures", "learn style", "train style", "image folder", "style transfer"),
            description="Fits a map that moves the model towards the style of a dozen or more pictures: along the "
            "gradient of the denoising loss, or from the activations of the pictures. No weight of the model changes.",
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to fit a map for. It is left unchanged."),
                sites_input(),
                io.Int.Input(
                    "steps",
                    default=RefineSettings.steps,
                    min=1,
                    max=_MAX_STEPS,
                    tooltip="For refined: steps of gradient descent.",
                ),
                *size_inputs(),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False, tooltip="Seed of the noise."
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="A dozen or more pictures in the style: a batch, or a list as from a node that loads a "
                    "folder. They are resized and cropped to one size.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The model's own VAE, which encodes the pictures."),
                io.Clip.Input("clip", optional=True, tooltip="Its text encoders, which read the captions."),
                io.String.Input(
                    "captions",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What each picture shows, without its style: one line for each picture, or a list of texts "
                    "from another node. Empty for none.",
                ),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="In place of images and vae: encoded pictures of one size.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="In place of captions and clip: one for each picture, or one for all.",
                ),
                pattern_input(),
                io.Combo.Input(
                    "estimator",
                    options=list(_ESTIMATORS),
                    default=_ESTIMATORS[0],
                    optional=True,
                    tooltip="refined comes closest to the style, and needs a model that gradients pass; where none do, "
                    "it falls back to transport, which fits a map at several noise levels.",
                ),
                io.Image.Input(
                    "source_images",
                    optional=True,
                    tooltip="For transport: pictures without the style. If none are connected, the model draws them.",
                ),
                io.String.Input(
                    "source_captions",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What each of the source_images shows; needed where the other pictures have captions.",
                ),
                io.String.Input(
                    "levels",
                    default=_LEVELS,
                    optional=True,
                    tooltip="For transport: noise levels that get coefficients of their own, above 0 and up to 1 (pure "
                    "noise).",
                ),
                io.Int.Input(
                    "samples",
                    default=0,
                    min=0,
                    max=MAX_PROMPTS,
                    optional=True,
                    tooltip="The first so many pictures are used; 0 uses all.",
                ),
                ACTMapIO.Input(
                    "start",
                    optional=True,
                    tooltip="For refined: a map that it starts from, such as one from Fit ACT Map. Without one, it "
                    "starts from no change.",
                ),
                io.Combo.Input(
                    "components",
                    options=["both", "model"],
                    default="both",
                    optional=True,
                    tooltip="For refined: both also steers the text encoders and comes closer to the style; model "
                    "keeps more of what the prompt says.",
                ),
                io.Boolean.Input(
                    "name_pictures",
                    default=True,
                    optional=True,
                    tooltip="For refined without captions: the model itself finds words for what each picture shows, "
                    "which comes closer to the style. It takes one pass of the model for each picture and each of "
                    f"{len(subjects())} words.",
                ),
            ],
            outputs=[
                ACTMapIO.Output(display_name="act_map", tooltip="The map."),
                io.String.Output(display_name="report", tooltip="What was fitted, and on what."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        sites: Any,
        steps: Any,
        width: Any,
        height: Any,
        seed: Any,
        images: Any = None,
        vae: Any = None,
        clip: Any = None,
        captions: Any = "",
        latents: Any = None,
        conditioning: Any = None,
        pattern: Any = "",
        estimator: Any = _ESTIMATORS[0],
        source_images: Any = None,
        source_captions: Any = "",
        levels: Any = _LEVELS,
        samples: Any = 0,
        start: Any = None,
        components: Any = "both",
        name_pictures: Any = True,
    ) -> io.NodeOutput:
        started = time.perf_counter()
        model = only("model", model)
        sites = only("pattern", pattern).strip() or only("sites", sites)
        settings = RefineSettings(sites=sites, steps=only("steps", steps), seed=only("seed", seed))
        # Check before anything runs, since encoding many pictures takes a while.
        check_model(model)
        noise_levels = parsed_levels(one_text(only("levels", levels), "levels", _NAME))
        size = only("width", width), only("height", height)
        inputs = PictureInputs(_NAME, model, vae, clip, *size, only("samples", samples))
        target = inputs.encoded("", images, latents, captions, conditioning)
        source = None
        if source_images is not None:
            source = inputs.encoded("source_", source_images, None, source_captions, conditioning)
            check_sides(source, target)
        transport = ImageTransport(model, target, source, noise_levels, FitSettings(sites=sites, seed=settings.seed))
        if only("estimator", estimator) == _ESTIMATORS[0]:
            own_clip = only("clip", clip) if conditioning is None else None
            is_named = own_clip is not None and only("name_pictures", name_pictures) and not any(target.captions)
            words = encoded_words(own_clip, subjects()) if is_named else EncodedWords()
            refined_clip = own_clip if only("components", components) == "both" else None
            refinement = ImageFit(model, target, settings, refined_clip, only("start", start), words)
            act_map = _refined(refinement, transport)
        else:
            act_map = transport.run()
        seconds = time.perf_counter() - started
        logging.info("ACT Steering: fitted %d sites in %.1f s.", len(act_map), seconds)
        report = f"Fitted in {seconds:.1f} s.\n{describe(act_map)}"
        return io.NodeOutput(act_map, report, ui={"text": (report,)})


def _refined(refinement: ImageFit, transport: ImageTransport) -> ActMap:
    """A refined map, or a transport where the model cannot be differentiated."""
    try:
        return refinement.run()
    except NotDifferentiableError as error:
        logging.warning("ACT Steering: %s Fitting with transport instead.", error)
        return fallback(transport.run(), error)
