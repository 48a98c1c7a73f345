"""A diffusers pipeline as a calibration needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..architectures import architecture_of
from ..calibrating import CalibrationModel, last_block
from ..calibration import LEVEL
from ..components import DIFFUSION_MODEL, Component
from ..errors import MapError
from ..maps import ActMap
from ..settings import Branch
from .diffusers import DiffusersModel
from .picture_loss import LATENTS
from .schedules import schedule_of


class PipelineCalibration(CalibrationModel):
    """Draws the subjects of a calibration with a pipeline, and lets its diffusion model look at them.

    Args:
        model: the pipeline.
        branch: the half of the batch that is steered under guidance.
        settings: of `DiffusersModel.generate`, such as ``steps``, ``guidance`` and ``seed``.

    Example::

        model = PipelineCalibration(DiffusersModel.from_pretrained("demo_model"), steps=8, guidance=3.0)
    """

    def __init__(self, model: DiffusersModel, *, branch: Branch = "positive", **settings: Any) -> None:
        self._model = model
        self._branch: Branch = branch
        self._settings = settings
        module = model.modules[DIFFUSION_MODEL]
        self._denoiser = Component(DIFFUSION_MODEL, module, architecture_of(module))

    def draw(self, prompts: Sequence[str], act_map: ActMap | None = None, strength: float = 0.0) -> Tensor:
        if act_map is None:
            return self._checked(self._model.latents(prompts, **self._settings))
        with self._model.steer(act_map, strength, self._branch) as steering:
            latents = self._model.latents(prompts, **self._settings)
            steering.check()
        return self._checked(latents)

    def activations(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        call = self._model.first_call(prompts)
        name = next((name for name in LATENTS if name in call), "")
        if not name or "timestep" not in call or call[name].shape != latents.shape:
            kind = type(self._model.pipeline).__name__
            raise MapError(f"A {kind} keeps its latents in a form that cannot be calibrated; use ComfyUI instead.")
        generators = [torch.Generator().manual_seed(number) for number in range(len(latents))]
        noises = [torch.randn(latents.shape[1:], generator=generator) for generator in generators]
        levels = torch.full((len(latents),), LEVEL)
        schedule = schedule_of(self._model.pipeline)
        if schedule is None:
            kind = type(self._model.pipeline.scheduler).__name__
            raise MapError(f"How a {kind} adds noise is not known, so maps cannot be calibrated with it; use ComfyUI.")
        noisy, _, time = schedule.at(
            schedule.sampled(levels), latents.to(call[name]), torch.stack(noises).to(call[name])
        )
        changes = {name: noisy, "timestep": _as_given(time / schedule.longest, call["timestep"], schedule.longest)}
        return last_block(self._denoiser, lambda: self._denoiser.module(**{**call, **changes}), len(latents))

    def _checked(self, latents: object) -> Tensor:
        if not isinstance(latents, Tensor):
            kind = type(self._model.pipeline).__name__
            raise MapError(
                f"A {kind} does not return its latents, so its maps cannot be calibrated; use ComfyUI instead."
            )
        return latents.float()


def _as_given(time: Tensor, first: Tensor, steps: int) -> Tensor:
    """Times from 0 to 1 on the scale of a pipeline, which its first and noisiest timestep shows."""
    begin = float(first.flatten()[0])
    if begin > 1:
        return (time * steps).to(first)
    return (time if begin > 0.5 else 1 - time).to(first)  # some count towards the picture
