"""Calibrates a map on a MODEL and a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from torch import Tensor

from ...act_core import ActMap
from ...act_core.calibrating import CalibrationModel, last_block
from ...act_core.calibration import LEVEL
from ...act_core.settings import Branch
from .denoiser import Denoiser, Row, run_denoiser
from .steering import Window, steered


@dataclass(frozen=True)
class HostCalibration(CalibrationModel):
    """Samples the subjects of a calibration, and lets the diffusion model look at them.

    Attributes:
        model, clip: MODEL and CLIP, neither of them steered.
        empty: an empty latent for one picture.
        negative: the negative prompt.
        seed: prompt n starts from the noise of ``seed + n``.
        steps, cfg, sampler_name, scheduler: as of KSampler.
        branch: see `ModelSteering`.
    """

    model: Any
    clip: Any
    empty: Tensor
    negative: str
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    branch: Branch = "positive"

    def draw(self, prompts: Sequence[str], act_map: ActMap | None = None, strength: float = 0.0) -> Tensor:
        model, clip = self.model, self.clip
        if act_map is not None:
            applied = steered(model, clip, act_map, strength, strength, Window(), self.branch)
            model, clip = applied.model, applied.clip
        negative = self._conditioning(self.clip, self.negative)
        drawn: list[Tensor] = []
        for number, prompt in enumerate(prompts):
            comfy.model_management.throw_exception_if_processing_interrupted()
            seed = self.seed + number
            latents = comfy.sample.sample(
                model,
                comfy.sample.prepare_noise(self.empty, seed),
                self.steps,
                self.cfg,
                self.sampler_name,
                self.scheduler,
                self._conditioning(clip, prompt),
                negative,
                self.empty,
                seed=seed,
                disable_pbar=True,
            )
            drawn.append(latents.cpu().float())
        return torch.cat(drawn)

    def activations(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        found: dict[int, Tensor] = {}

        def use(denoiser: Denoiser) -> None:
            sigma = denoiser.sigma_at(1 - LEVEL)
            for number in range(len(prompts)):
                latent = denoiser.process_latent_in(latents[number : number + 1])
                noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(number)).to(latent)
                row: Row = denoiser.row(number, latent, noise, sigma)
                found[number] = last_block(denoiser.components[0], partial(denoiser.denoised, [row]), 1)

        encoded = [self._conditioning(self.clip, prompt)[0] for prompt in prompts]
        run_denoiser(self.model, self.empty, self.seed, encoded, use)
        return torch.cat([found[number] for number in range(len(prompts))])

    def _conditioning(self, clip: Any, prompt: str) -> Any:
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
