"""Text-to-image pipelines of the diffusers library, from a local folder: Stable Diffusion 1 to 3, SDXL, Flux."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import diffusers
import torch
from diffusers import StableDiffusion3Pipeline  # pyright: ignore[reportPrivateImportUsage]
from PIL.Image import Image
from torch import nn

from ..architectures import architecture_of
from ..components import Component
from ..errors import MapError, first_line
from ..fitting import FitModel, MicroBatch
from ..maps import ActMap
from ..settings import Branch, Components, Strength
from ..steering import BatchRows, Steering, steer

logger = logging.getLogger(__name__)

DIFFUSION_MODEL = "diffusion_model"
# What hosts call the text encoders, by their place in the pipeline; T5 goes by its own name wherever it stands.
_TEXT_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
# What `encode_prompt` returns, by the name that the call of the pipeline takes it under.
_EMBEDS = {
    "StableDiffusionPipeline": ("prompt_embeds",),
    "StableDiffusionXLPipeline": ("prompt_embeds", "", "pooled_prompt_embeds"),
    "StableDiffusion3Pipeline": ("prompt_embeds", "", "pooled_prompt_embeds"),
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
}
# The schedule whose first step a fit runs. Only its noisiest step counts, which hardly depends on it.
_STEPS = 20


class DiffusersModel(FitModel[str]):
    """A text-to-image pipeline.

    A fit runs each prompt once, from noise of its own, at the noisiest step of the schedule and without guidance
    (paper, section 5); the text encoders run first, then the diffusion model, in one causal walk.

    Args:
        pipeline: a pipeline of diffusers; it is copied, its models are not.
        name: what to call it.
        components: which parts hold sites: the diffusion model (``model``), the text encoders (``text``), ``both``.
        size: width and height of the pictures in pixels; the pipeline's own where it is None.
        seed: of a fit, in which number n of either side starts from the noise of ``seed + n``.

    Raises:
        MapError: a pipeline of another kind, or a size that it cannot do.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str = "",
        *,
        components: Components = "both",
        size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        if components not in get_args(Components):
            raise MapError(f"There are no components {components!r}; choose one of {', '.join(get_args(Components))}.")
        if isinstance(pipeline, StableDiffusion3Pipeline) and not pipeline.text_encoder_2:
            pipeline = OneEncoderPipeline(**pipeline.components)
        self.pipeline: Any = copy.copy(pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        self.name = name
        self._kind = next((k.__name__ for k in type(pipeline).__mro__ if k.__name__ in _EMBEDS), "")
        if not self._kind:
            raise MapError(f"A {type(pipeline).__name__} cannot be steered; these can: {', '.join(_EMBEDS)}.")
        self._components: Components = components
        self._size = self._checked_size(size)
        self._seed = seed
        # Which rows of a batch are the branch, for the text encoders and for the diffusion model.
        self._text_rows = {branch: BatchRows() for branch in ("positive", "negative")}
        self._model_rows = {branch: BatchRows() for branch in ("positive", "negative")}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        components: Components = "both",
        size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> DiffusersModel:
        """Load a pipeline folder. Nothing is ever fetched from a hub.

        Raises:
            MapError: the folder holds no pipeline, part of it is missing, or it is of another kind.
        """
        folder = Path(folder).expanduser()
        kind, absent = _checked_folder(folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # newer versions call torch_dtype dtype, older do not
                pipeline = kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, **absent).to(device)
        except Exception as error:
            raise MapError(f"The pipeline {folder} cannot be loaded: {first_line(error)}") from error
        return cls(pipeline, folder.name, components=components, size=size, seed=seed)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The text encoders and the diffusion model by component name, in the order in which they run."""
        found: dict[str, nn.Module] = {}
        for place, name in _TEXT_ENCODERS.items():
            encoder = _uncompiled(getattr(self.pipeline, place, None))
            if encoder is not None:
                found["t5xxl" if "T5" in type(encoder).__name__ else name] = encoder
        found[DIFFUSION_MODEL] = _uncompiled(self._denoiser)
        return found

    @property
    def components(self) -> list[Component]:
        texts = {"both": (True, False), "text": (True,), "model": (False,)}[self._components]
        return [
            Component(name, module, architecture_of(module))
            for name, module in self.modules.items()
            if (name != DIFFUSION_MODEL) in texts
        ]

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        """Prompts in the order given; number n of either side starts from the same noise."""
        self._tell_of_long(samples)
        starts = range(0, len(samples), size)
        return [self._batch(samples[at : at + size], first_seed=self._seed + at) for at in starts]

    def steer(self, act_map: ActMap, strength: Strength = 1.0, branch: Branch = "positive") -> Steering:
        """Steer the pictures of `generate`: ``with model.steer(act_map, 0.7): model.generate(...)``.

        Args:
            act_map: map of this pipeline.
            strength: one number, or one for each component of the map.
            branch: under guidance, the half that is moved. Steering both moves little, since guidance takes what is
                moved in both for no difference.

        Raises:
            MapError: as `act_core.steer`.
        """
        if branch not in get_args(Branch):
            raise MapError(f"There is no branch {branch!r}; choose one of {', '.join(get_args(Branch))}.")
        rows: dict[str, BatchRows] = {}
        if branch != "both":
            rows = {**dict.fromkeys(self.modules, self._text_rows[branch]), DIFFUSION_MODEL: self._model_rows[branch]}
        return steer(self.modules, act_map, strength, rows=rows)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        negative: str = "",
        steps: int = _STEPS,
        guidance: float | None = None,
        seed: int = 0,
    ) -> list[Image]:
        """One picture for each prompt, as one batch.

        Args:
            prompts: texts; what is longer than the text encoder takes is cut off, with a warning.
            negative: under guidance, what the pictures are guided away from.
            steps: of the schedule.
            guidance: scale; up to 1 there is none; the pipeline's own where it is None.
            seed: number n of the prompts starts from the noise of ``seed + n``, whatever else is in the batch.

        Raises:
            MapError: no prompt, no step, or a guidance that is not finite.
        """
        if not prompts:
            raise MapError("There is no prompt; write what the picture should show.")
        if steps < 1:
            raise MapError(f"The number of steps is {steps}; it must be at least 1.")
        if guidance is None:
            guidance = float(inspect.signature(self.pipeline.__call__).parameters["guidance_scale"].default)
        if not math.isfinite(guidance):
            raise MapError(f"The guidance is {guidance}; it must be a finite number, such as 3.")
        self._tell_of_long([*prompts, negative])
        two_branches = guidance > 1 and not self._embeds_guidance
        count = len(prompts)
        self._text_rows["positive"].choose(None)
        self._text_rows["negative"].choose(())
        embeds = self._encode(list(prompts))
        self._text_rows["positive"].choose(())
        self._text_rows["negative"].choose(None if two_branches else ())
        self._model_rows["positive"].choose((1,) if two_branches else None, of=2)
        self._model_rows["negative"].choose((0,) if two_branches else (), of=2)
        away = {"negative_prompt": [negative] * count} if two_branches and negative else {}
        pipeline = self._own_schedule()
        with torch.inference_mode():
            return pipeline(
                **embeds,
                **away,
                **self._call(count, seed),
                num_inference_steps=steps,
                guidance_scale=guidance,
            ).images

    def _encode(self, prompts: list[str]) -> dict[str, Any]:
        """The positive branch of the text encoders."""
        encode = self.pipeline.encode_prompt
        settings = {
            "prompt": prompts,
            "prompt_2": None,
            "prompt_3": None,
            "device": self.pipeline._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": False,
        }
        known = inspect.signature(encode).parameters
        with torch.inference_mode():
            encoded = encode(**{name: value for name, value in settings.items() if name in known})
        return {name: value for name, value in zip(_EMBEDS[self._kind], encoded, strict=False) if name}

    def _tell_of_long(self, prompts: Sequence[str]) -> None:
        """Pipelines cut off what their text encoders do not take."""
        tokenizers = [getattr(self.pipeline, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
        shortest = min(filter(None, tokenizers), key=lambda tokenizer: tokenizer.model_max_length)
        most = shortest.model_max_length
        for text in dict.fromkeys(prompts):
            length = len(shortest(text, truncation=False, verbose=False)["input_ids"])
            if length > most:
                logger.warning("%r has %d tokens, of which a text encoder reads the first %d.", text, length, most)

    def _batch(self, prompts: Sequence[str], first_seed: int) -> MicroBatch:
        # With the guidance that a distilled model is told, or without any.
        guidance = {} if self._embeds_guidance else {"guidance_scale": 1.0}
        pipeline = self._own_schedule(slice(1))

        def run() -> object:  # the same noise each time
            return pipeline(
                prompt=list(prompts),
                num_inference_steps=_STEPS,
                output_type="latent",
                **guidance,
                **self._call(len(prompts), first_seed),
            )

        return MicroBatch(len(prompts), run)

    def _call(self, count: int, seed: int) -> dict[str, Any]:
        width, height = self._size or (None, None)
        noise = [torch.Generator().manual_seed(seed + number) for number in range(count)]
        return {"width": width, "height": height, "generator": noise}

    def _own_schedule(self, steps: slice | None = None) -> Any:
        """The pipeline with a scheduler of its own, which counts steps, and so for a fit makes only some of them."""
        pipeline = copy.copy(self.pipeline)
        pipeline.scheduler = scheduler = copy.deepcopy(self.pipeline.scheduler)
        original = scheduler.set_timesteps

        @functools.wraps(original)  # pipelines look at its signature
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            scheduler.timesteps = scheduler.timesteps[steps or slice(None)]

        scheduler.set_timesteps = set_timesteps
        return pipeline

    @property
    def _denoiser(self) -> Any:
        pipeline = self.pipeline
        return pipeline.unet if getattr(pipeline, "unet", None) is not None else pipeline.transformer

    @property
    def _embeds_guidance(self) -> bool:
        """Whether the scale is an input of the model, and not a matter of two branches."""
        return self._kind == "FluxPipeline"

    def _checked_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is None:
            return None
        width, height = size
        config = self._denoiser.config
        patch = 2 if self._kind == "FluxPipeline" else getattr(config, "patch_size", 1)
        unit = self.pipeline.vae_scale_factor * patch
        if any(side < unit or side % unit for side in size):
            raise MapError(f"Pictures of {width} x {height} cannot be made; give multiples of {unit} pixels.")
        largest = (getattr(config, "pos_embed_max_size", None) or math.inf) * unit
        if max(size) > largest:
            raise MapError(f"Pictures of {width} x {height} are too large for {self.name}; it goes up to {largest}.")
        return size


class OneEncoderPipeline(StableDiffusion3Pipeline):
    """SD3 with a single text encoder of the same width as its context, which is given its last hidden states."""

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


def _checked_folder(folder: Path) -> tuple[Any, dict[str, None]]:
    """The class of the pipeline in a folder, and which of its parts it does without; all others are there."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise MapError(f"{folder} is no pipeline folder: it has no model_index.json; give a diffusers folder that has.")
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
    if kind not in _EMBEDS:
        raise MapError(f"{folder} holds a {kind}, which cannot be steered; these can: {', '.join(_EMBEDS)}.")
    return getattr(diffusers, kind), absent


def _uncompiled(module: Any) -> Any:
    return getattr(module, "_orig_mod", module)
