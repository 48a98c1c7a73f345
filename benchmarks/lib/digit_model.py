"""A published diffusion transformer that draws handwritten digits, which this project did not train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from act_core import ActMap, steer
from act_core.architectures import architecture_of
from act_core.components import DIFFUSION_MODEL, Component
from act_core.fitting import FitModel, LevelModel, MicroBatch
from act_core.steering import Steering

DIGITS = 10
STEPS = 25
_SIZE, _PATCH, _WIDTH, _HEADS, _LAYERS = 28, 7, 64, 4, 4
_CONDITIONS = 2  # tokens of the time, and as many of the digit


class DigitBlock(nn.Module):
    """A transformer block whose norms follow the residual sums, as `nn.TransformerEncoderLayer`.

    That one runs as one fused operation in inference. This one also passes parts of what it returns through modules
    that do nothing, so that they are sites: `picture`, tokens ``[n, 16, 64]``; `places`, the same as a vector
    ``[n, 1024]``, in which each channel of each token has its own transport; and `digit`, the two tokens of the digit
    as a vector ``[n, 128]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True)
        self.linear1 = nn.Linear(_WIDTH, 4 * _WIDTH)
        self.linear2 = nn.Linear(4 * _WIDTH, _WIDTH)
        self.norm1 = nn.LayerNorm(_WIDTH)
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.picture, self.places, self.digit = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x, x, x, need_weights=False)[0])
        x = self.norm2(x + self.linear2(functional.gelu(self.linear1(x))))
        picture, time, digit = x.split([x.shape[1] - 2 * _CONDITIONS, _CONDITIONS, _CONDITIONS], dim=1)
        picture = self.places(self.picture(picture).flatten(1)).view_as(picture)
        return torch.cat([picture, time, self.digit(digit.flatten(1)).view_as(digit)], dim=1)


class DigitTransformer(nn.Module):
    """Predicts the clean picture ``[n, 1, 28, 28]`` from a noisy one, its time ``[n]`` and digit ``[n]``.

    The names of its parameters are those of the checkpoint. Time runs from 0, pure noise, to 1, the picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, _WIDTH, _PATCH, _PATCH)
        self.pos_embed = nn.Parameter(torch.zeros(1, (_SIZE // _PATCH) ** 2, _WIDTH))
        self.transformer = nn.ModuleList(DigitBlock() for _ in range(_LAYERS))
        self.unpatch = nn.ConvTranspose2d(_WIDTH, 1, _PATCH, _PATCH)
        # The last row stands for no digit.
        self.y_encoder = nn.Embedding(DIGITS + 1, _CONDITIONS * _WIDTH)

    def forward(self, x: Tensor, time: Tensor, digit: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        rates = torch.exp(torch.arange(_WIDTH) * (-math.log(10000.0) / (_WIDTH - 1)))
        angles = time[:, None] * rates
        conditions = torch.cat([angles.sin(), angles.cos(), self.y_encoder(digit)], dim=1)
        tokens = torch.cat(
            [patches.flatten(2).mT + self.pos_embed, conditions.unflatten(1, (2 * _CONDITIONS, _WIDTH))], dim=1
        )
        for block in self.transformer:
            tokens = block(tokens)
        tokens = tokens[:, : -2 * _CONDITIONS]
        return self.unpatch(tokens.mT.unflatten(2, patches.shape[2:]))


class Digit(NamedTuple):
    """A sample: a digit, drawn from the noise of a seed."""

    digit: int
    seed: int


class DigitModel(LevelModel[Digit]):
    """The transformer as a model that can be fitted at any noise level, which is 1 less the time.

    Args:
        weights: the checkpoint, a state dict.
    """

    def __init__(self, weights: Path) -> None:
        self.module = DigitTransformer()
        self.module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.module.eval().requires_grad_(False)
        self._trajectories: dict[Digit, Tensor] = {}

    def draw(self, samples: Sequence[Digit], steering: Steering | None = None) -> Tensor:
        """Pictures ``[n, 1, 28, 28]`` from 0 to 1, by Euler's method without guidance."""
        return self._states(samples, steering)[-1].clamp(0, 1)

    def steered(self, act_map: ActMap, samples: Sequence[Digit], strength: float) -> Tensor:
        """As `draw`, steered."""
        with steer({DIFFUSION_MODEL: self.module}, act_map, strength) as steering:
            return self.draw(samples, steering)

    @torch.inference_mode()
    def _states(self, samples: Sequence[Digit], steering: Steering | None = None) -> list[Tensor]:
        """The noisy pictures before each step, and the last one."""
        digits = torch.tensor([sample.digit for sample in samples])
        x = torch.stack([_noise(sample.seed) for sample in samples])
        states = [x]
        for step in range(STEPS):
            time = step / STEPS
            if steering is not None and steering.act_map.levels:
                steering.level = 1 - time
            clean = self.module(x, torch.full((len(x),), time), digits)
            x = x + (clean - x) / (1 - time) / STEPS
            states.append(x)
        return states

    def at_level(self, level: float) -> FitModel[Digit]:
        return _AtLevel(self, level)

    def check_samples(self, samples: Sequence[Digit]) -> None:
        """Every digit can be used."""

    def on_the_way(self, samples: Sequence[Digit], level: float) -> Callable[[], Any]:
        """Runs the transformer on what the unsteered model has drawn at a noise level."""
        missing = [sample for sample in samples if sample not in self._trajectories]
        if missing:
            states = torch.stack(self._states(missing), dim=1)
            self._trajectories |= dict(zip(missing, states, strict=True))
        step = round((1 - level) * STEPS)
        x = torch.stack([self._trajectories[sample][step] for sample in samples])
        time = torch.full((len(x),), step / STEPS)
        return partial(self.module, x, time, torch.tensor([sample.digit for sample in samples]))


class _AtLevel(FitModel[Digit]):
    """The transformer at one noise level."""

    def __init__(self, model: DigitModel, level: float) -> None:
        self._model = model
        self._level = level
        self._components = (Component(DIFFUSION_MODEL, model.module, architecture_of(model.module)),)

    @property
    def components(self) -> Sequence[Component]:
        return self._components

    def describe(self, sample: Digit) -> str:
        return f"digit {sample.digit}, seed {sample.seed}"

    def cost(self, sample: Digit) -> int:
        return 1

    def batches(self, samples: Sequence[Digit], size: int) -> list[MicroBatch]:
        parts = [samples[at : at + size] for at in range(0, len(samples), size)]
        return [MicroBatch(len(part), self._model.on_the_way(part, self._level)) for part in parts]


def _noise(seed: int) -> Tensor:
    return torch.randn(1, _SIZE, _SIZE, generator=torch.Generator().manual_seed(seed))
