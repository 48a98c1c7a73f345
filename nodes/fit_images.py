"""Fit ACT Map From Images: pictures of a style in, a map out."""

from __future__ import annotations

import logging
import time
from typing import Any

from comfy_api.latest import io

from ..act_core.errors import FitError
from ..act_core.settings import MAX_SEED, RefineSettings
from ..act_core.summary import describe
from .common import CATEGORY, ACTMapIO, aliases, one_text, only, pattern_input, sites_input, size_inputs
from .host.fitting import check_model
from .host.image_fitting import ImageFit, check_latents, encode_images, rows_of
from .host.text_encoders import Conditioning, TextEncoders

_NAME = "Fit ACT Map From Images"
_MAX_STEPS = 10000
# What the host may keep beside a prompt that does not act everywhere, or not at each step.
_SPECIAL = ("start_percent", "end_percent", "area", "mask", "control", "gligen", "hooks")


class FitACTMapFromImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FitACTMapFromImages",
            display_name=_NAME,
            category=CATEGORY,
            **aliases("style from pictures", "learn style", "train style", "image folder", "style transfer"),
            description="Fits a map that moves the model towards the style of a dozen or more pictures. Only the map "
            "follows the gradient of the model's denoising loss; no weight of the model changes.",
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to fit a map for. It is left unchanged."),
                sites_input(),
                io.Int.Input(
                    "steps",
                    default=RefineSettings.steps,
                    min=1,
                    max=_MAX_STEPS,
                    tooltip="Steps of gradient descent. With ten pictures or more, some are held back: it ends early "
                    "when they get worse.",
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
    ) -> io.NodeOutput:
        started = time.perf_counter()
        model = only("model", model)
        sites = only("pattern", pattern).strip() or only("sites", sites)
        settings = RefineSettings(sites=sites, steps=only("steps", steps), seed=only("seed", seed))
        # Check before anything runs, since encoding many pictures takes a while.
        check_model(model)
        if (images is None) == (latents is None):
            raise FitError(f"{_NAME} needs either images and their VAE, or latents; connect one of the two.")
        if latents is None and vae is None:
            raise FitError(f"{_NAME} needs the model's VAE to encode the images; connect it.")
        pictures = [picture for batch in _listed(images) for picture in batch] if latents is None else []
        encoded = [] if latents is None else [row for latent in _listed(latents) for row in rows_of(model, latent)]
        texts, conditionings = _conditioning(clip, captions, conditioning, len(pictures) + len(encoded))
        if latents is None:
            encoded = encode_images(model, only("vae", vae), pictures, only("width", width), only("height", height))
        check_latents(model, encoded)
        act_map = ImageFit(model, encoded, texts, conditionings, settings).run()
        seconds = time.perf_counter() - started
        logging.info("ACT Steering: fitted %d sites in %.1f s.", len(act_map), seconds)
        return io.NodeOutput(act_map, f"Fitted in {seconds:.1f} s.\n{describe(act_map)}")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _conditioning(clip: Any, captions: Any, conditioning: Any, count: int) -> tuple[list[str], list[Conditioning]]:
    """Caption and conditioning of each picture; captions are empty if only conditioning is connected.

    Raises:
        FitError: neither a CLIP nor conditioning is connected, or there are too few or too many.
    """
    if conditioning is None:
        if clip is None:
            raise FitError(f"{_NAME} needs the CLIP that reads the captions, or conditioning; connect one of the two.")
        texts = _captions(captions, count)
        different = list(dict.fromkeys(texts))
        encoded = dict(zip(different, TextEncoders(only("clip", clip)).encode(different), strict=True))
        return texts, [encoded[text] for text in texts]
    if len(conditioning) not in (1, count):
        raise FitError(
            f"{_NAME} got {count} pictures, but conditioning for {len(conditioning)}; connect one for each picture, or "
            "one for all."
        )
    given = [_plain(parts) for parts in conditioning]
    return [""] * count, given if len(given) == count else given * count


def _plain(parts: Any) -> Conditioning:
    """The prompt of a conditioning.

    Raises:
        FitError: it holds more than one prompt, which acts everywhere and at each step.
    """
    special = [key for key in _SPECIAL if any(key in extra for _, extra in parts)]
    if len(parts) != 1 or special:
        reason = f"has {', '.join(special)}" if special else f"combines {len(parts)} prompts"
        raise FitError(f"The conditioning of {_NAME} {reason}; connect that of a plain prompt, as of CLIP Text Encode.")
    return parts[0][0], parts[0][1]


def _captions(texts: Any, count: int) -> list[str]:
    """One caption for each picture.

    Raises:
        FitError: another number of them.
    """
    listed = _listed(texts)
    for text in listed:
        one_text(text, "captions", _NAME)
    captions = [text.strip() for text in (listed[0].strip().splitlines() if len(listed) == 1 else listed)]
    if not any(captions):
        return [""] * count
    if len(captions) != count:
        raise FitError(
            f"{_NAME} got {count} pictures, but {len(captions)} captions; write one line for each picture, or none."
        )
    if not all(captions):
        raise FitError(f"Caption {captions.index('') + 1} of {_NAME} is empty; write one line for each picture.")
    return captions
