"""Text-to-image pipelines of the diffusers library, from a local folder: Stable Diffusion 1 to 3, SDXL, Flux."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import StableDiffusion3Pipeline  # pyright: ignore[reportPrivateImportUsage]
from PIL.Image import Image
from torch import nn

from ..architectures import architecture_of
from ..components import DIFFUSION_MODEL, Component
from ..errors import MapError
from ..fitting import MicroBatch
from ..settings import Branch, Components, as_integer, check_choice
from ..steering import BatchRows
from .base import SteerableModel, as_real, checked_prompts, checked_seed
from .loading import loading
from .pipelines import (
    EMBEDS,
    GUIDED_BY_INPUT,
    TEXT_ENCODERS,
    OneEncoderPipeline,
    checked_folder,
    denoiser,
    kind_of,
    with_own_schedule,
)

__all__ = ["DIFFUSION_MODEL", "Branch", "DiffusersModel"]

logger = logging.getLogger(__name__)

# Length of the schedule whose first step a fit runs; that noisiest step hardly depends on the length.
_STEPS = 20


class DiffusersModel(SteerableModel[Image]):
    """A text-to-image pipeline.

    A fit runs each prompt once, from separate noise, at the noisiest step of the schedule and without guidance
    (paper, section 5); the text encoders run first, then the diffusion model, in one causal walk.

    Args:
        pipeline: a diffusers pipeline; it is copied, but its models are shared.
        name: display name.
        components: which parts hold sites: the diffusion model (``model``), the text encoders (``text``), or ``both``.
        size: width and height of the pictures in pixels; the pipeline's default if None.
        seed: seed of a fit, in which prompt n of either side starts from the noise of ``seed + n``.

    Raises:
        MapError: an unknown kind of pipeline, or a size that it cannot draw.

    Example::

        model = DiffusersModel.from_pretrained("demo_model")
        act_map = fit(model, ["cat, flat sticker", ...], ["cat, black ink icon", ...])
        with model.steer(act_map, 0.7):
            model.generate(["rocket, flat sticker"])[0].save("rocket.png")
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
        check_choice("components", components, get_args(Components))
        self._kind = kind_of(pipeline)
        if isinstance(pipeline, StableDiffusion3Pipeline) and not pipeline.text_encoder_2:
            pipeline = OneEncoderPipeline(**pipeline.components)
        self.pipeline: Any = copy.copy(pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        self.name = name
        self._components: Components = components
        self._size = self._checked_size(size)
        self._seed = checked_seed(seed)
        # Which rows of a batch belong to a branch, for the text encoders and for the diffusion model.
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
        """Load a pipeline folder. Nothing is ever downloaded.

        Raises:
            MapError: the folder holds no pipeline, one of an unknown kind, or one with missing parts.
        """
        folder = Path(folder).expanduser()
        with loading(f"The pipeline {folder}"), warnings.catch_warnings():
            kind, absent = checked_folder(folder)
            warnings.simplefilter("ignore", FutureWarning)  # newer versions rename torch_dtype to dtype
            pipeline = kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, **absent).to(device)
        return cls(pipeline, folder.name, components=components, size=size, seed=seed)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The text encoders and the diffusion model by component name, in the order in which they run."""
        found: dict[str, nn.Module] = {}
        for place, name in TEXT_ENCODERS.items():
            encoder = _uncompiled(getattr(self.pipeline, place, None))
            if encoder is not None:
                found["t5xxl" if "T5" in type(encoder).__name__ else name] = encoder
        found[DIFFUSION_MODEL] = _uncompiled(denoiser(self.pipeline))
        return found

    @property
    def components(self) -> list[Component]:
        is_text = {"both": (True, False), "text": (True,), "model": (False,)}[self._components]
        return [
            Component(name, module, architecture_of(module))
            for name, module in self.modules.items()
            if (name != DIFFUSION_MODEL) in is_text
        ]

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        """Prompts in the order given; prompt n of either side starts from the same noise."""
        self._warn_of_long(samples)
        starts = range(0, len(samples), size)
        return [self._batch(samples[at : at + size], first_seed=self._seed + at) for at in starts]

    def generate(
        self,
        prompts: Sequence[str],
        *,
        negative: str = "",
        steps: int = _STEPS,
        guidance: float | None = None,
        seed: int = 0,
        step: Callable[[], object] | None = None,
    ) -> list[Image]:
        """One picture for each prompt, as one batch.

        Args:
            prompts: texts; a text that is too long for the text encoder is truncated, with a warning.
            negative: the negative prompt, under guidance.
            steps: number of denoising steps.
            guidance: guidance (CFG) scale; 1 or less turns guidance off; the pipeline's default if None.
            seed: prompt n starts from the noise of ``seed + n``, whatever else is in the batch.
            step: called after each denoising step; an exception that it raises ends the run.

        Raises:
            MapError: no prompt, or a setting that is out of range.
        """
        prompts = checked_prompts(prompts)
        (negative,) = checked_prompts([negative])
        steps, seed = as_integer("steps", steps, 1, error=MapError), checked_seed(seed)
        if guidance is None:
            guidance = inspect.signature(self.pipeline.__call__).parameters["guidance_scale"].default
        guidance = as_real("guidance", guidance, 0)
        self._warn_of_long([*prompts, negative])
        two_branches = guidance > 1 and self._kind not in GUIDED_BY_INPUT
        count = len(prompts)
        self._text_rows["positive"].choose(None)
        self._text_rows["negative"].choose(())
        embeds = self._encode(prompts)
        self._text_rows["positive"].choose(())
        self._text_rows["negative"].choose(None if two_branches else ())
        if two_branches:  # negative rows come first
            self._model_rows["negative"].choose((0,), of=2, rows=2 * count)
            self._model_rows["positive"].choose((1,), of=2, rows=2 * count)
        else:
            self._model_rows["negative"].choose(())
            self._model_rows["positive"].choose(None)
        away = {"negative_prompt": [negative] * count} if two_branches and negative else {}
        pipeline = with_own_schedule(self.pipeline)
        with torch.inference_mode():
            return pipeline(
                **embeds,
                **away,
                **self._call(count, seed),
                num_inference_steps=steps,
                guidance_scale=guidance,
                callback_on_step_end=_calling(step) if step else None,
            ).images

    def _rows(self, branch: Branch) -> dict[str, BatchRows] | None:
        if branch == "both":
            return None
        return {**dict.fromkeys(self.modules, self._text_rows[branch]), DIFFUSION_MODEL: self._model_rows[branch]}

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
        return {name: value for name, value in zip(EMBEDS[self._kind], encoded, strict=False) if name}

    def _warn_of_long(self, prompts: Sequence[str]) -> None:
        """Pipelines silently truncate prompts that are too long for their text encoders."""
        tokenizers = [getattr(self.pipeline, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
        shortest = min(filter(None, tokenizers), key=lambda tokenizer: tokenizer.model_max_length)
        most = shortest.model_max_length
        for text in dict.fromkeys(prompts):
            length = len(shortest(text, truncation=False, verbose=False)["input_ids"])
            if length > most:
                logger.warning("%r has %d tokens, of which a text encoder reads the first %d.", text, length, most)

    def _batch(self, prompts: Sequence[str], first_seed: int) -> MicroBatch:
        # A guidance-distilled model gets its default guidance as an input; others run without guidance.
        guidance = {} if self._kind in GUIDED_BY_INPUT else {"guidance_scale": 1.0}
        pipeline = with_own_schedule(self.pipeline, slice(1))

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

    def _checked_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is None:
            return None
        try:
            width, height = (as_integer("size", side, 0, error=MapError) for side in size)
        except (TypeError, ValueError):
            raise MapError(f"size is {size!r}; give width and height in pixels, such as (512, 512).") from None
        config = denoiser(self.pipeline).config
        patch = 2 if self._kind == "FluxPipeline" else getattr(config, "patch_size", 1)
        unit = self.pipeline.vae_scale_factor * patch
        if any(side < unit or side % unit for side in (width, height)):
            raise MapError(f"Pictures of {width} x {height} cannot be drawn; give multiples of {unit} pixels.")
        largest = (getattr(config, "pos_embed_max_size", None) or math.inf) * unit
        if max(width, height) > largest:
            raise MapError(
                f"Pictures of {width} x {height} are too large for {self.name or 'this model'}; it draws up to "
                f"{largest} pixels per side."
            )
        return width, height


def _calling(step: Callable[[], object]) -> Callable[..., dict[str, Any]]:
    """A function that a pipeline calls after each denoising step, with what it may change."""

    def call(pipeline: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        step()
        return tensors

    return call


def _uncompiled(module: Any) -> Any:
    return getattr(module, "_orig_mod", module)
