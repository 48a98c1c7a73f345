"""A LoRA that is trained from prompts to move pictures from a source to a target (as in arXiv 2311.12092)."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from act_core.components import DIFFUSION_MODEL
from act_core.models.diffusers import DiffusersModel
from act_core.models.schedules import FlowSchedule, schedule_of

from .models import ROOT
from .pictures import GUIDANCE

RANK, BATCH = 8, 16
# The best one of `picture_lora`.
RATE = 3e-3
# The model predicts this many times the difference of target and source at strength 1.
ETA = 1.0
# In which the pictures of source prompts are drawn that are noised to train on.
STEPS = 8
# The layers that a LoRA is usually trained on.
MODEL_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def with_lora(model: DiffusersModel, rate: float) -> torch.optim.Adam:
    """Put a LoRA on the attention of the diffusion model and of the text encoder; what trains it, and only it."""
    from peft import LoraConfig

    torch.manual_seed(0)
    parts: dict[str, Any] = dict(model.modules)
    for name, module in parts.items():
        module.requires_grad_(False)
        layers = MODEL_LAYERS if name == DIFFUSION_MODEL else TEXT_LAYERS
        module.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers))
    return torch.optim.Adam([p for module in parts.values() for p in module.parameters() if p.requires_grad], rate)


class Slider:
    """A LoRA on the attention of the diffusion model and of the text encoder, trained in a copy of the demo model.

    For a source prompt it learns to predict ``base + ETA * (target - source)``, where all three are predictions of the
    model without it: for the source prompt, for the target prompt of the same number, and for the source prompt.

    Args:
        source, target: prompts; number n of both sides belong together.
        rate: learning rate.

    Attributes:
        model: the model, with the LoRA at strength 1.
        seconds: of processor time spent on gradient steps so far.
        steps: taken so far.
    """

    def __init__(self, source: Sequence[str], target: Sequence[str], rate: float = RATE) -> None:
        self.model = DiffusersModel.from_pretrained(ROOT / "demo_model")
        self._pairs = list(zip(source, target, strict=True))
        self._schedule = cast("FlowSchedule", schedule_of(self.model.pipeline))
        self._latents = self.model.latents(list(source), steps=STEPS, guidance=GUIDANCE)
        self._parts: dict[str, Any] = dict(self.model.modules)
        self._optimizer = with_lora(self.model, rate)
        self._generator = torch.Generator().manual_seed(0)
        self.seconds, self.steps = 0.0, 0

    def train(self, seconds: float) -> None:
        """Go on until this many seconds were spent in all; at least one step."""
        while self.seconds < seconds or not self.steps:
            start = time.process_time()
            self._loss().backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.seconds += time.process_time() - start
            self.steps += 1

    @contextmanager
    def at(self, strength: float) -> Generator[DiffusersModel, None, None]:
        """The model, with the LoRA at a strength."""
        self._scale(strength)
        try:
            yield self.model
        finally:
            self._scale(1.0)

    def _scale(self, strength: float) -> None:
        for module in self._parts.values():
            for layer in module.modules():
                if isinstance(scaling := getattr(layer, "scaling", None), dict):
                    # `lora_alpha` equals the rank, so that the scaling of strength 1 is 1.
                    scaling["default"] = strength

    def _loss(self) -> Tensor:
        chosen = torch.randperm(len(self._pairs), generator=self._generator)[:BATCH]
        sides = list(zip(*(self._pairs[int(number)] for number in chosen), strict=True))
        clean = self._latents[chosen].clone()
        noise = torch.randn(clean.shape, generator=self._generator)
        level = self._schedule.sampled(torch.rand(len(clean), generator=self._generator))
        noisy, _, times = self._schedule.at(level, clean, noise)
        self._scale(0.0)
        with torch.no_grad():
            source, target = (self._predicted(side, noisy, times) for side in sides)
        self._scale(1.0)
        return torch.nn.functional.mse_loss(self._predicted(sides[0], noisy, times), source + ETA * (target - source))

    def _predicted(self, prompts: Sequence[str], noisy: Tensor, times: Tensor) -> Tensor:
        call = self.model.first_call(prompts)
        given = {**call, "hidden_states": noisy, "timestep": times.to(call["timestep"])}
        output: Any = self._parts[DIFFUSION_MODEL](**given)
        return output[0] if isinstance(output, tuple) else output.sample
