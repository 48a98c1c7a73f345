"""Maps with noise levels in the sampling of a diffusers pipeline: each call of its diffusion model sets the level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import MapMismatchError
from ..steering.forward import layers_on
from .pipeline_calls import Call
from .pipelines import denoiser, denoiser_place, uncompiled
from .schedules import counts, schedule_of

Around = Mapping[str, Callable[[Call], Any]]


def with_levels(pipeline: Any, around: Around) -> Around:
    """What is called in place of each model, with the level set first for the maps that act on the diffusion model.

    Args:
        pipeline: whose models are steered.
        around: see `act_core.models.pipeline_calls.watched`.

    Raises:
        MapMismatchError: from the first call, if the pipeline counts time in its own way.
    """
    steered: Any = uncompiled(denoiser(pipeline))
    layers = [layer for part in steered.modules() for layer in layers_on(part) if layer.act_map.levels]
    if not layers:
        return around
    place, schedule = denoiser_place(pipeline), schedule_of(pipeline)
    run = around.get(place, lambda call: call.run())
    is_known = False

    def denoise(call: Call) -> Any:
        nonlocal is_known
        time = torch.as_tensor(call.arguments.get("timestep", 0.0))
        # Only a first step shows how time is counted: the last one is near 0 in any case.
        if schedule is None or not (is_known or counts(schedule, time)):
            raise MapMismatchError(
                f"{layers[0].act_map.called} has several noise levels, but how a {type(pipeline).__name__} with a "
                f"{type(pipeline.scheduler).__name__} counts them is not known; use at() to choose one level."
            )
        is_known = True
        level = min(1.0, max(0.0, float(time.max()) / schedule.longest))
        for layer in layers:
            layer.choose_level(level, layer.act_map.bin_at(level) or 0)
        return run(call)

    return {**around, place: denoise}
