"""Maps of several denoising steps, to compare with the map of the first step, which is used at all steps by default."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from act_core import ActMap, fit
from act_core.components import DIFFUSION_MODEL
from act_core.fitting import MicroBatch
from act_core.models.diffusers import DiffusersModel
from act_core.models.pipelines import with_own_schedule
from act_core.settings import Branch

STEPS = 20


class PerStep(DiffusersModel):
    """A pipeline that can be fitted at any denoising step, and steered at each step by the map of the nearest one."""

    _step = 0
    _source: Sequence[str] = ()
    _maps: dict[int, ActMap]

    def fit_each(self, source: Sequence[str], target: Sequence[str], steps: int, **settings: Any) -> dict[int, ActMap]:
        """Maps by number of the step.

        As in a causal fit, source prompts reach a step steered by the maps of the steps before it.

        Args:
            source, target: prompts of the two sides.
            steps: how many maps, evenly spaced over the schedule.
            settings: of `act_core.fit`.
        """
        self._source, self._maps = source, {}
        for self._step in range(0, STEPS, STEPS // steps):
            self._maps[self._step] = fit(self, source, target, **settings)
        self._step = 0
        return self._maps

    def _batch(self, prompts: Sequence[str], seeds: Sequence[int]) -> MicroBatch:
        settings: dict[str, Any] = {
            "num_inference_steps": STEPS,
            "output_type": "latent",
            "guidance_scale": 1.0,
        }
        if self._step:
            is_steered = self._maps and prompts[0] in self._source
            with torch.no_grad(), self.steer_each(self._maps, 1.0, "both") if is_steered else nullcontext():
                earlier = with_own_schedule(self.pipeline, slice(self._step))
                settings["latents"] = earlier(**self._arguments.of(prompts, seeds, **settings)).images
        pipeline = with_own_schedule(self.pipeline, slice(self._step, self._step + 1))
        return MicroBatch(len(prompts), lambda: pipeline(**self._arguments.of(prompts, seeds, **settings)))

    @contextmanager
    def steer_each(self, maps: dict[int, ActMap], strength: float, branch: Branch) -> Generator[None, None, None]:
        """Steer by the map of the nearest step; the text encoder, which runs before the first step, by its map."""
        schedule: Any = with_own_schedule(self.pipeline).scheduler
        schedule.set_timesteps(STEPS)
        times = {number: float(schedule.timesteps[number]) for number in maps}
        steerings = {number: self.steer(act_map, 0.0, branch) for number, act_map in maps.items()}
        acting: int | None = None

        def choose(_module: object, _arguments: object, inputs: dict[str, Any]) -> None:
            nonlocal acting
            nearest = min(times, key=lambda number: abs(times[number] - float(inputs["timestep"][0])))
            if nearest == acting:
                return
            acting = nearest
            for number, steering in steerings.items():
                steering.strength = {
                    component: strength * (number == (nearest if component == DIFFUSION_MODEL else 0))
                    for component in steering.act_map.components
                }

        with ExitStack() as stack:
            for steering in steerings.values():
                stack.enter_context(steering)
            choose(None, None, {"timestep": [times[0]]})
            hook = self.modules[DIFFUSION_MODEL].register_forward_pre_hook(choose, with_kwargs=True)
            stack.callback(hook.remove)
            yield
