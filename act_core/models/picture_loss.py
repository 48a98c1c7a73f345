"""The denoising loss of a diffusers pipeline on pictures, for `act_core.fitting.refine`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..components import Component
from ..errors import FitError
from ..fitting import LossModel
from ..image_files import Picture, as_values, check_pictures
from .diffusers import DiffusersModel
from .pipelines import denoiser, uncompiled

# Names that the noisy latents have in diffusion models.
_LATENTS = ("hidden_states", "sample")


class PictureModel(LossModel[Picture]):
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
        self._schedule = _schedule(self._pipeline)
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
        call = self._model.first_call([sample.caption for sample in samples])
        name, given = self._input(call)
        clean = torch.stack([self._latent(sample, given) for sample in samples]).to(given)
        noise = torch.randn(clean.shape, generator=generator).to(given)
        level = torch.rand(len(samples), generator=generator)
        noisy, wanted, time = self._schedule.at(level, clean, noise)
        output: Any = self._denoiser(**{**call, name: noisy, "timestep": time.to(call["timestep"])})
        predicted = cast("Tensor", output[0] if isinstance(output, tuple) else output.sample)
        # Some models also predict a variance, in further channels.
        return nn.functional.mse_loss(predicted[:, : wanted.shape[1]].float(), wanted.float())

    def _input(self, call: Mapping[str, Any]) -> tuple[str, Tensor]:
        name = next((name for name in _LATENTS if name in call), "")
        given = call.get(name)
        kind = type(self._pipeline).__name__
        if not isinstance(given, Tensor) or given.ndim != 4 or "timestep" not in call:
            raise FitError(
                f"A {kind} packs its latents, so pictures cannot be put in; fit from prompts, or use Fit ACT Map From "
                "Images in ComfyUI."
            )
        # Others count time from 0 to 1, some of them backwards.
        if not 1 < float(call["timestep"].flatten()[0]) <= self._schedule.steps:
            raise FitError(f"A {kind} counts time in its own way, so its loss is not known; fit from prompts.")
        return name, given

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


class _FlowSchedule:
    """Rectified flow: noise and picture are mixed linearly, and the model predicts their difference."""

    def __init__(self, shift: float, steps: int) -> None:
        self._shift = shift
        self.steps = steps

    def at(self, level: Tensor, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, what the model should predict, and its timestep, at levels from 0 to 1 ``[rows]``."""
        # As often as a sampler visits them.
        sigma = self._shift * level / (1 + (self._shift - 1) * level)
        weight = sigma.view(-1, 1, 1, 1).to(clean)
        return (1 - weight) * clean + weight * noise, noise - clean, sigma * self.steps


class _DiffusionSchedule:
    """Variance-preserving diffusion, in which the model predicts the noise or the velocity."""

    def __init__(self, alphas: Tensor, predicts_velocity: bool) -> None:
        self._alphas = alphas
        self.steps = len(alphas)
        self._predicts_velocity = predicts_velocity

    def at(self, level: Tensor, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `_FlowSchedule.at`."""
        time = (level * len(self._alphas)).long().clamp(max=len(self._alphas) - 1)
        alpha = self._alphas[time].view(-1, 1, 1, 1).to(clean)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        wanted = signal * noise - spread * clean if self._predicts_velocity else noise
        return signal * clean + spread * noise, wanted, time


def _schedule(pipeline: Any) -> _FlowSchedule | _DiffusionSchedule:
    scheduler = pipeline.scheduler
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__:
        return _FlowSchedule(float(getattr(config, "shift", None) or 1.0), config.num_train_timesteps)
    alphas: object = getattr(scheduler, "alphas_cumprod", None)
    predicts = getattr(config, "prediction_type", "epsilon")
    if isinstance(alphas, Tensor) and predicts in ("epsilon", "v_prediction"):
        return _DiffusionSchedule(alphas, predicts == "v_prediction")
    raise FitError(
        f"The loss of a pipeline with a {type(scheduler).__name__} is not known, so it cannot learn from pictures; fit "
        "from prompts."
    )
