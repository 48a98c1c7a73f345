"""Pictures that a MODEL draws itself, as the source of a fit from pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from .progress import StepProgress
from .text_encoders import Conditioning

# Latents that are sampled together.
_TOGETHER = 4
_STEPS = 12
_SAMPLER, _SCHEDULER = "euler", "simple"


def drawn_latents(model: Any, empty: Tensor, conditionings: Sequence[Conditioning], seed: int) -> list[Tensor]:
    """A latent ``[1, channels, ...]`` for each conditioning, without guidance.

    Args:
        model: a MODEL, which is not changed.
        empty: an empty latent ``[1, channels, ...]``.
        conditionings: of prompts.
        seed: latent n starts from the noise of ``seed + n``.
    """
    latents: dict[int, Tensor] = {}
    groups = _groups(conditionings)
    progress = StepProgress(len(groups) * _STEPS)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), _SCHEDULER, _STEPS)
    for group in groups:
        guider = comfy.samplers.CFGGuider(model.clone())
        guider.inner_set_conds({"positive": [list(_joined([conditionings[number] for number in group]))]})
        noise = torch.cat([_noise(empty, seed + number) for number in group])

        def step(*_: object) -> None:
            progress()

        sampler = comfy.samplers.sampler_object(_SAMPLER)
        drawn = guider.sample(
            noise, torch.zeros_like(noise), sampler, sigmas, callback=step, disable_pbar=True, seed=seed
        )
        latents.update(zip(group, drawn.cpu().split(1), strict=True))
    return [latents[number] for number in range(len(conditionings))]


def _noise(empty: Tensor, seed: int) -> Tensor:
    return torch.randn(empty.shape, generator=torch.Generator().manual_seed(seed))


def _groups(conditionings: Sequence[Conditioning]) -> list[list[int]]:
    """Numbers of conditionings that can be sampled together."""
    groups: list[list[int]] = []
    for number, conditioning in enumerate(conditionings):
        key = _key(conditioning)
        fitting = (one for one in groups if len(one) < _TOGETHER and _key(conditionings[one[0]]) == key)
        if (group := next(fitting, None)) is None:
            groups.append([number])
        else:
            group.append(number)
    return groups


def _key(conditioning: Conditioning) -> tuple[Any, ...]:
    """What must be equal for conditionings to be joined: shapes of tensors, and all other values.

    Tensors without a row for each prompt, such as the token numbers of Anima, cannot be joined: only the very same
    conditioning then fits.
    """
    cond, extra = conditioning
    tensors = [cond, *(value for value in extra.values() if isinstance(value, Tensor))]
    if not all(tensor.ndim > 1 and tensor.shape[0] == 1 for tensor in tensors):
        return (id(cond),)
    kept = [(name, tuple(v.shape) if isinstance(v, Tensor) else repr(v)) for name, v in sorted(extra.items())]
    return tuple(cond.shape), tuple(kept)


def _joined(conditionings: Sequence[Conditioning]) -> Conditioning:
    """One conditioning with a row for each, or that of all of them if they are the same; the host repeats it."""
    if all(cond is conditionings[0][0] for cond, _ in conditionings):
        return conditionings[0]
    conds, extras = zip(*conditionings, strict=True)
    extra = {
        name: torch.cat([own[name] for own in extras]) if isinstance(value, Tensor) else value
        for name, value in extras[0].items()
    }
    return torch.cat(conds), extra
