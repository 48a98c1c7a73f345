"""The supported text-to-image pipelines of diffusers: kinds, folders and schedules."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import StableDiffusion3Pipeline  # pyright: ignore[reportPrivateImportUsage]

from ..errors import MapError, first_line

# For each kind, the values that `encode_prompt` returns, by the names of the pipeline's call arguments.
EMBEDS = {
    "StableDiffusionPipeline": ("prompt_embeds",),
    "StableDiffusionXLPipeline": ("prompt_embeds", "", "pooled_prompt_embeds"),
    "StableDiffusion3Pipeline": ("prompt_embeds", "", "pooled_prompt_embeds"),
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
}
# Kinds whose model takes the guidance scale as an input instead of a second branch.
GUIDED_BY_INPUT = ("FluxPipeline",)
# Names of the text encoders by their position in the pipeline; T5 has the same name in any position.
TEXT_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}


class OneEncoderPipeline(StableDiffusion3Pipeline):
    """SD3 with a single text encoder, whose last hidden states are the context and have its width."""

    def encode_prompt(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        **_: object,
    ) -> tuple[torch.Tensor | None, ...]:
        """Embeddings of prompts ``[n, tokens, width]`` and of negative prompts, then both pooled, ``[n, width]``."""
        if prompt_embeds is None:
            prompt_embeds, pooled_prompt_embeds = self._encoded(prompt or "", 1)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            count = prompt_embeds.shape[0]
            negative_prompt_embeds, negative_pooled_prompt_embeds = self._encoded(negative_prompt or "", count)
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds

    def _encoded(self, texts: str | list[str], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        texts = [texts] * count if isinstance(texts, str) else texts
        tokenizer: Any = self.tokenizer
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        # No mask: the encoder is causal, and pads come last.
        output = self.text_encoder(input_ids=ids.to(self._execution_device))
        return output.last_hidden_state, output.text_embeds


def kind_of(pipeline: Any) -> str:
    """The name of the known class that a pipeline is an instance of.

    Raises:
        MapError: an unknown kind of pipeline.

    Example:
        >>> kind_of("a text")
        Traceback (most recent call last):
        ...
        act_core.errors.MapError: A str cannot be steered; these can: StableDiffusionPipeline, \
StableDiffusionXLPipeline, StableDiffusion3Pipeline, FluxPipeline.
    """
    known = (kind.__name__ for kind in type(pipeline).__mro__ if kind.__name__ in EMBEDS)
    kind = next(known, None)
    if kind is None:
        raise MapError(f"A {type(pipeline).__name__} cannot be steered; these can: {', '.join(EMBEDS)}.")
    return kind


def denoiser(pipeline: Any) -> Any:
    """The diffusion model of a pipeline: its UNet or its transformer."""
    return pipeline.unet if getattr(pipeline, "unet", None) is not None else pipeline.transformer


def with_own_schedule(pipeline: Any, steps: slice | None = None) -> Any:
    """A pipeline that shares its models with `pipeline` and has its own scheduler, which counts steps.

    Args:
        pipeline: of diffusers.
        steps: the steps of the schedule to run; all if None.
    """
    pipeline = copy.copy(pipeline)
    pipeline.scheduler = scheduler = copy.deepcopy(pipeline.scheduler)
    original = scheduler.set_timesteps

    @functools.wraps(original)  # pipelines inspect its signature
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        scheduler.timesteps = scheduler.timesteps[steps or slice(None)]

    scheduler.set_timesteps = set_timesteps
    return pipeline


def checked_folder(folder: Path) -> tuple[Any, dict[str, None]]:
    """The class of the pipeline in a folder, and the parts that it lacks, as arguments for ``from_pretrained``.

    Raises:
        MapError: the folder holds no pipeline, one of another kind, or one with missing parts.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise MapError(
            f"{folder} is not a pipeline folder: it has no model_index.json. Give a folder in the format of diffusers."
        )
    try:
        entries = cast("Mapping[str, Any]", json.loads(index.read_text(encoding="utf-8")))
        parts: dict[str, Any] = {name: entry for name, entry in entries.items() if isinstance(entry, list)}
        absent = {name: None for name, entry in parts.items() if entry[0] is None}
        kind = str(entries["_class_name"])
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise MapError(f"{index} is damaged ({first_line(error)}); download or save the pipeline again.") from error
    for name in parts:
        if name not in absent and not (folder / name).is_dir():
            raise MapError(f"The pipeline {folder} has no folder {name!r}, which its model_index.json names; add it.")
    if kind not in EMBEDS:
        raise MapError(f"{folder} holds a {kind}, which cannot be steered; these can: {', '.join(EMBEDS)}.")
    return getattr(diffusers, kind), absent
