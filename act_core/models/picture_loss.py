"""A diffusers pipeline on pictures: its denoising loss for `refine`, and its activations for `fit_pictures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..components import DIFFUSION_MODEL, Component
from ..errors import FitError
from ..fitting import LevelModel, LossModel
from ..image_files import Picture, as_values, check_pictures
from .diffusers import DiffusersModel
from .noisy_pictures import NoisyPictures
from .pipelines import denoiser, uncompiled
from .schedules import counts, schedule_of

# Names that the noisy latents have in diffusion models.
LATENTS = ("hidden_states", "sample")
# How source pictures are drawn: so many at a time, in so many steps.
_DRAWN_TOGETHER = 8
_DRAWING_STEPS = 12


class PictureModel(LossModel[Picture], LevelModel[Picture]):
    """A text-to-image pipeline with the loss of its diffusion model on pictures and their captions.

    The loss is the squared error of what the model predicts: the noise, the velocity, or the flow. Noise levels are
    drawn as often as a sampler visits them. Text encoders follow the gradient, too, where they are components.

    Args:
        model: the pipeline, such as Stable Diffusion 1 to 3 or SDXL.

    Raises:
        FitError: the scheduler is of an unknown kind. The first loss raises it for a pipeline that packs its latents or
            counts time in its own way, and for a VAE that returns values that are not finite.

    Example::

        act_map = refine(PictureModel(DiffusersModel.from_pretrained("demo_model")), read_pictures("my_style"))
    """

    def __init__(self, model: DiffusersModel) -> None:
        self._model = model
        self._pipeline = model.pipeline
        self._denoiser: Any = uncompiled(denoiser(self._pipeline))
        schedule = schedule_of(self._pipeline)
        if schedule is None:
            raise FitError(
                f"The loss of a pipeline with a {type(self._pipeline.scheduler).__name__} is not known, so it cannot "
                "learn from pictures; fit from prompts."
            )
        self._schedule = schedule
        self._latents: WeakKeyDictionary[Picture, Tensor] = WeakKeyDictionary()

    @property
    def components(self) -> list[Component]:
        return self._model.components

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {**self._model.modules, "vae": self._pipeline.vae}

    def describe(self, sample: Picture) -> str:
        return sample.caption

    def check_samples(self, samples: Sequence[Picture]) -> None:
        check_pictures(list(samples))

    def loss(self, samples: Sequence[Picture], generator: torch.Generator) -> Tensor:
        call, clean = self._prepared(samples)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        level = self._schedule.sampled(torch.rand(len(samples), generator=generator))
        output, wanted = self._denoised(call, clean, noise, level)
        predicted = cast("Tensor", output[0] if isinstance(output, tuple) else output.sample)
        # Some models also predict a variance, in further channels.
        return nn.functional.mse_loss(predicted[:, : wanted.shape[1]].float(), wanted.float())

    def at_level(self, level: float) -> NoisyPictures:
        def run(pictures: Sequence[Picture], seeds: Sequence[int]) -> None:
            call, clean = self._prepared(pictures)
            noises = [torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            self._denoised(call, clean, torch.stack(noises).to(clean), torch.full([len(pictures)], level))

        # Text encoders see no pictures.
        parts = [part for part in self.components if part.name == DIFFUSION_MODEL]
        return NoisyPictures(self._model, parts, self.modules, run)

    def drawn(self, samples: Sequence[Picture], seed: int) -> list[Picture]:
        captions = [sample.caption for sample in samples]
        found: list[Picture] = []
        for at in range(0, len(captions), _DRAWN_TOGETHER):
            part = captions[at : at + _DRAWN_TOGETHER]
            images = self._model.generate(part, seed=seed + at, steps=_DRAWING_STEPS)
            found += [Picture(image, caption) for image, caption in zip(images, part, strict=True)]
        return found

    def _prepared(self, samples: Sequence[Picture]) -> tuple[dict[str, Any], Tensor]:
        """What the diffusion model gets for the captions of pictures, and the clean latents ``[rows, ...]``."""
        call = dict(self._model.first_call([sample.caption for sample in samples]))
        given = call[self._input(call)]
        return call, torch.stack([self._latent(sample, given) for sample in samples]).to(given)

    def _denoised(self, call: Mapping[str, Any], clean: Tensor, noise: Tensor, level: Tensor) -> tuple[Any, Tensor]:
        """What the diffusion model returns at noise levels ``[rows]``, and what it should predict."""
        noisy, wanted, time = self._schedule.at(level, clean, noise)
        given = {**call, self._input(call): noisy, "timestep": time.to(call["timestep"])}
        return self._denoiser(**given), wanted

    def _input(self, call: Mapping[str, Any]) -> str:
        """The name of the noisy latents among the arguments of a call."""
        name = next((name for name in LATENTS if name in call), "")
        given = call.get(name)
        kind = type(self._pipeline).__name__
        if not isinstance(given, Tensor) or given.ndim != 4 or "timestep" not in call:
            raise FitError(
                f"A {kind} packs its latents, so pictures cannot be put in; fit from prompts, or use Fit ACT Map From "
                "Images in ComfyUI."
            )
        # Others count time from 0 to 1, some of them backwards.
        if not counts(self._schedule, call["timestep"]):
            raise FitError(f"A {kind} counts time in its own way, so its loss is not known; fit from prompts.")
        return name

    def _latent(self, picture: Picture, like: Tensor) -> Tensor:
        """The latent of a picture, ``[channels, height, width]``, encoded once."""
        if picture not in self._latents:
            vae: Any = self._pipeline.vae
            scale = int(self._pipeline.vae_scale_factor)
            values = as_values(picture.image, like.shape[-1] * scale, like.shape[-2] * scale)
            with torch.no_grad():
                encoded = vae.encode(torch.from_numpy(values)[None].to(vae.device, vae.dtype))
            latent = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
            if not bool(latent.isfinite().all()):
                raise FitError("The VAE returns values that are not finite; load the pipeline in float32 or bfloat16.")
            shift = getattr(vae.config, "shift_factor", None) or 0.0
            self._latents[picture] = ((latent - shift) * vae.config.scaling_factor)[0]
        return self._latents[picture]
