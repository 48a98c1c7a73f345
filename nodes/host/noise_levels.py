"""Noise levels of `act_core.levels` in the host's models, which count noise in sigmas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Halvings of the range of sigmas, after which float32 has no digits left.
_HALVINGS = 40


def level_of(model_sampling: Any, sigma: Tensor) -> float:
    """The noise level of a sigma ``[1]``: the time that the model is given, as a share of the longest.

    Args:
        model_sampling: of the host's model.
        sigma: noise level in the host's unit.
    """
    longest = float(model_sampling.timestep(_as_sigma(model_sampling.sigma_max, sigma)))
    # Models whose time is a logarithm go below 0.
    shortest = min(0.0, float(model_sampling.timestep(_as_sigma(model_sampling.sigma_min, sigma))))
    level = (float(model_sampling.timestep(sigma.view(1))) - shortest) / (longest - shortest)
    return min(1.0, max(0.0, level))


def sigma_of(model_sampling: Any, level: float, device: torch.device) -> Tensor:
    """The sigma ``[1]`` of a noise level.

    The host's `sigma` is not the inverse of its `timestep` where a schedule is shifted, so this searches.
    """
    low, high = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if level_of(model_sampling, torch.full((1,), middle, device=device)) < level:
            low = middle
        else:
            high = middle
    return torch.full((1,), high, device=device)


def _as_sigma(value: Any, like: Tensor) -> Tensor:
    return torch.full((1,), float(value), device=like.device)
