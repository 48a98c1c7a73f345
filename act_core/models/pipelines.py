"""Text-to-image pipelines of diffusers: which can be steered, their parts, folders and schedules."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from ..components import DIFFUSION_MODEL
from ..errors import MapError, first_line
from ..interception import inner_model

# Names of CLIP text encoders by their position in the pipeline; others are named by their family.
_CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
# Names that other text encoders have in every host, by the `model_type` of their configuration.
_NAMES = {"t5": "t5xxl", "umt5": "umt5xxl"}
# Diffusion models that get padded prompts and join only the tokens of their mask with the picture.
_REMOVE_PADDING = ("Lumina2Transformer2DModel",)
_NEEDED = ("prompt", "height", "width", "num_inference_steps", "generator")


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


def reason_against(kind: Any) -> str:
    """Why a class of pipelines cannot draw pictures from a prompt alone; empty if nothing speaks against it.

    Example:
        >>> reason_against(str)
        'it is not a text-to-image pipeline of diffusers'
    """
    is_pipeline = issubclass(kind, DiffusionPipeline)
    parameters: dict[str, inspect.Parameter] = dict(inspect.signature(kind.__call__).parameters) if is_pipeline else {}
    if not all(name in parameters for name in _NEEDED):
        return "it is not a text-to-image pipeline of diffusers"
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in ("self", "prompt", "args", "kwargs")
    ]
    return f"it needs more than a prompt: {', '.join(needed)}" if needed else ""


def check_pipeline(pipeline: Any) -> None:
    """Refuse what cannot draw pictures from a prompt alone, as far as can be known before it runs.

    Raises:
        MapError: it is not a pipeline, needs other input, or lacks a diffusion model or scheduler of its own.

    Example:
        >>> check_pipeline("a text")
        Traceback (most recent call last):
        ...
        act_core.errors.MapError: A str cannot be steered: it is not a text-to-image pipeline of diffusers.
    """
    reason = reason_against(type(pipeline))
    if not reason:
        held = cast("dict[str, Any]", vars(pipeline)).values()
        parts = [type(part).__name__ for part in held if isinstance(part, DiffusionPipeline)]
        if parts:
            reason = f"it runs other pipelines ({', '.join(parts)}); steer these one by one"
        elif not isinstance(denoiser(pipeline), nn.Module) or getattr(pipeline, "scheduler", None) is None:
            reason = "its diffusion model (unet or transformer) or its scheduler is missing"
    if reason:
        raise MapError(f"A {type(pipeline).__name__} cannot be steered: {reason}.")


def denoiser_place(pipeline: Any) -> str:
    """The attribute that holds the diffusion model; of several, the one for the noisiest steps."""
    places = ("unet", "transformer", "transformer_2")
    return next((place for place in places if getattr(pipeline, place, None) is not None), "transformer")


def denoiser(pipeline: Any) -> Any:
    """The diffusion model of a pipeline: its UNet or its transformer; None if it has neither."""
    return getattr(pipeline, denoiser_place(pipeline), None)


def text_encoders(pipeline: Any) -> dict[str, str]:
    """Component names of the text encoders, by the attributes that hold them, in the order of their numbers."""
    places = ["text_encoder", *(f"text_encoder_{number}" for number in range(2, 5))]
    encoders = {place: uncompiled(getattr(pipeline, place, None)) for place in places}
    present = {place: encoder for place, encoder in encoders.items() if isinstance(encoder, nn.Module)}
    names: dict[str, str] = {}
    for place, encoder in present.items():
        name = _encoder_name(place, encoder, present)
        names[place] = place if name in names.values() else name
    return names


def places_of(pipeline: Any) -> dict[str, str]:
    """The attribute of a pipeline that holds each component, such as ``unet``."""
    encoders = {name: place for place, name in text_encoders(pipeline).items()}
    return {**encoders, DIFFUSION_MODEL: denoiser_place(pipeline)}


def _encoder_name(place: str, encoder: nn.Module, present: Mapping[str, nn.Module]) -> str:
    family = str(getattr(getattr(encoder, "config", None), "model_type", "") or type(encoder).__name__)
    if not is_clip(encoder):
        return _NAMES.get(family, family)
    first = present.get("text_encoder")
    # Beside a language model or T5, a lone CLIP is the small one.
    return "clip_l" if first is not None and not is_clip(first) else _CLIP.get(place, place)


def is_clip(encoder: nn.Module) -> bool:
    """Whether a text encoder is a CLIP, whose padding is part of what diffusion models were trained on."""
    return "CLIP" in type(inner_model(encoder)).__name__


def removes_padding(pipeline: Any) -> bool:
    """Whether the diffusion model removes the padding of prompts before it joins them with the picture."""
    return type(inner_model(denoiser(pipeline))).__name__ in _REMOVE_PADDING


def uncompiled(module: Any) -> Any:
    """A module without the wrapper of `torch.compile`."""
    return getattr(module, "_orig_mod", module)


def with_own_schedule(
    pipeline: Any, steps: slice | None = None, after_step: Callable[[], object] = lambda: None
) -> Any:
    """A pipeline that shares its models with `pipeline` and has its own scheduler, which counts steps.

    Args:
        pipeline: of diffusers.
        steps: the steps of the schedule to run; all if None.
        after_step: called after each step of the scheduler.
    """
    pipeline = copy.copy(pipeline)
    pipeline.scheduler = scheduler = copy.deepcopy(pipeline.scheduler)
    kind = cast("Any", type(scheduler))

    @functools.wraps(kind.set_timesteps)  # pipelines inspect its signature
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)
        self.timesteps = self.timesteps[steps or slice(None)]

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = kind.step(self, *args, **kwargs)
        if self is scheduler:
            after_step()
        return result

    # A subclass rather than attributes, since some pipelines copy their scheduler.
    methods = {"set_timesteps": set_timesteps, "step": step, "__module__": kind.__module__}
    scheduler.__class__ = type(kind.__name__, (kind,), methods)
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
    found: Any = getattr(diffusers, kind, None)
    reason = reason_against(found) if isinstance(found, type) else "this version of diffusers does not have it"
    if reason:
        raise MapError(f"{folder} holds a {kind}, which cannot be steered: {reason}.")
    return found, absent
