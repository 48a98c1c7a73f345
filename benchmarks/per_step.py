"""Maps of several steps of the schedule, to compare with the map of its first step that is used at all of them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from act_core import ActMap, fit
from act_core.fitting import MicroBatch
from act_core.models.diffusers import DIFFUSION_MODEL, Branch, DiffusersModel

STEPS = 20


class PerStep(DiffusersModel):
    """A pipeline that is fitted at any step of the schedule, and steered at each step by the map of the nearest."""

    _at = 0
    _source: Sequence[str] = ()
    _maps: dict[int, ActMap]

    def fit_each(self, source: Sequence[str], target: Sequence[str], steps: int, **settings: Any) -> dict[int, ActMap]:
        """Maps by number of the step. Source prompts come to a step steered by the maps of those before it."""
        self._source, self._maps = source, {}
        for self._at in range(0, STEPS, STEPS // steps):
            self._maps[self._at] = fit(self, source, target, **settings)
        self._at = 0
        return self._maps

    def _batch(self, prompts: Sequence[str], first_seed: int) -> MicroBatch:
        settings: dict[str, Any] = {
            "prompt": list(prompts),
            "num_inference_steps": STEPS,
            "output_type": "latent",
            "guidance_scale": 1.0,
        }
        if self._at:
            moved = self._maps and prompts[0] in self._source
            with torch.no_grad(), self.steer_each(self._maps, 1.0, "both") if moved else nullcontext():
                before = self._own_schedule(slice(self._at))
                settings["latents"] = before(**settings, **self._call(len(prompts), first_seed)).images
        pipeline = self._own_schedule(slice(self._at, self._at + 1))
        return MicroBatch(len(prompts), lambda: pipeline(**settings, **self._call(len(prompts), first_seed)))

    @contextmanager
    def steer_each(self, maps: dict[int, ActMap], strength: float, branch: Branch) -> Generator[None, None, None]:
        """The text encoder follows the map of the first step, which is on before the schedule begins."""
        schedule: Any = self._own_schedule().scheduler
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
            for steering in steerings.values():
                steering.check()
