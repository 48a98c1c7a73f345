"""A map on a MODEL: applied at each call of the model, and removed right after it."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...act_core import ActMap, steer
from ...act_core.components import DIFFUSION_MODEL, Component
from ...act_core.settings import Branch, as_strength
from ...act_core.steering import BatchRows, Steering, check_variant
from ...act_core.text import shorten
from .models import KEY, diffusion_model, forget_prompts, log_remarks
from .noise_levels import level_of
from .schedule import Window

_BRANCHES = "act_branches"


@dataclass
class _Run:
    """Records the calls of the model in one sampling run.

    Attributes:
        calls: calls of the model.
        outside: calls outside the window.
        faded: calls inside the window at which the shape of the schedule is 0.
        without_branch: calls inside the window without rows of the branch.
        acted: steerings that were active; one for each replica of the model. Those of a model that is gone drop out,
            since a hook outlives its models.
    """

    calls: int = 0
    outside: int = 0
    faded: int = 0
    without_branch: int = 0
    acted: WeakSet[Steering] = field(default_factory=WeakSet[Steering])


class ModelSteering:
    """A map on one clone of a MODEL.

    Args:
        act_map: holds sites of the diffusion model.
        strength: of the map.
        window: the part of the schedule in which it acts, and how its strength changes there.
        branch: the half of the batch that is steered under guidance.

    Attributes:
        outcome: after a sampling run, how many sites fired, or why the map did not act.
    """

    def __init__(
        self, act_map: ActMap, strength: float = 1.0, window: Window | None = None, branch: Branch = "positive"
    ) -> None:
        self.act_map = act_map
        self.strength = as_strength(strength)
        self.window = window or Window()
        self.branch: Branch = branch
        self.outcome = ""
        # One for each replica of the model, since a host with several devices runs them at the same time.
        self._steerings: WeakKeyDictionary[nn.Module, tuple[Steering, BatchRows]] = WeakKeyDictionary()
        self._run: _Run | None = None
        # Used by a hook, for which the host does not report the start and end of a run.
        self._without_run = _Run()

    def on(self, model: Any) -> Steering:
        """The map on a MODEL, or on a replica of it.

        Raises:
            MapError: no site of the map is in the model, or it was fitted on another model of the same class.
        """
        return self._on(diffusion_model(model))[0]

    def patched(self, model: Any) -> Any:
        """A clone of a MODEL that is steered."""
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self._sample)
        clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _note_branches)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self.call)
        return clone

    def call(self, executor: Any, *args: Any, strength: float | None = None, **kwargs: Any) -> Any:
        """Wrap one call of the model: ``x, t, c_concat, c_crossattn, control, transformer_options``.

        Raises:
            MapError: the map should have acted, but none of its sites ran.
        """
        options = args[5] if len(args) > 5 else kwargs.get("transformer_options", {})
        run = self._run or self._without_run
        run.calls += 1
        factor = self.window.factor(executor.class_obj.model_sampling, options)
        if not factor:
            run.outside += factor is None
            run.faded += factor == 0
            return executor(*args, **kwargs)
        parts, of = self._parts(options)
        if parts == ():
            run.without_branch += 1
            return executor(*args, **kwargs)
        component = diffusion_model(executor.class_obj)
        steering, rows = self._on(component)
        x = args[0] if args else kwargs["x"]
        # Another pack may append rows inside the model, which belong to no branch.
        rows.choose(parts, of, rows=x.shape[0] if isinstance(x, Tensor) else None)
        strength = factor * (self.strength if strength is None else strength)
        if strength != steering.strength:
            steering.strength = strength
        if self.act_map.levels:
            steering.level = level_of(executor.class_obj.model_sampling, options["sigmas"].max())
        forget_prompts(component.module)
        with steering:
            output = executor(*args, **kwargs)
            if strength and steering not in run.acted:
                run.acted.add(steering)
                # Later calls may be answered from a cache of another pack, which skips parts of the model.
                if run.calls == 1 or run is self._without_run:
                    steering.check()
                if run is self._without_run:
                    log_remarks(steering)
                    logging.info("ACT Steering: %s", self._fired(steering))
        forget_prompts(component.module)
        return output

    def _on(self, component: Component) -> tuple[Steering, BatchRows]:
        module = component.module
        if module not in self._steerings:
            rows = BatchRows()
            rows_of = {DIFFUSION_MODEL: rows}
            steering = steer({DIFFUSION_MODEL: module}, self.act_map, self.strength, rows=rows_of, must_fire=False)
            check_variant(self.act_map, component)
            self._steerings[module] = steering, rows
        return self._steerings[module]

    def _parts(self, options: dict[str, Any]) -> tuple[tuple[int, ...] | None, int]:
        """The parts of the batch that belong to the branch, and how many parts there are."""
        uuids, names = options.get("uuids") or (), options.get(_BRANCHES, {})
        if uuids and all(uuid in names for uuid in uuids):
            branches = ["negative" if "negative" in names[uuid] else "positive" for uuid in uuids]
        else:
            branches = ["negative" if index == 1 else "positive" for index in options.get("cond_or_uncond") or (0,)]
        parts = tuple(number for number, branch in enumerate(branches) if self.branch in ("both", branch))
        return (None, 1) if len(parts) == len(branches) else (parts, len(branches))

    def _sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrap a sampling run, and report afterwards what fired."""
        before, run = self._run, _Run()
        self._steerings.clear()  # and with them the counts, which are per run
        self._run = run
        try:
            output = executor(*args, **kwargs)
        finally:
            self._run = before
        self._report(run)
        return output

    def _report(self, run: _Run) -> None:
        """Log how many sites fired in a run, or why the map did not act."""
        if run.acted and not any(steering.coverage.fired for steering in run.acted):
            next(iter(run.acted)).check()
        lines = [self._fired(steering) for steering in run.acted]
        for line in lines:
            logging.info("ACT Steering: %s", line)
        if not lines and (reason := self._why_not(run)):
            lines = [f"{self.act_map.called} did not act in this run: {reason}"]
            logging.warning("ACT Steering: %s", lines[0])
        self.outcome = " ".join(lines)

    def _fired(self, steering: Steering) -> str:
        return f"{shorten(self.act_map.card.title, 60) or 'map'}: {steering.coverage}."

    def _why_not(self, run: _Run) -> str:
        if run.without_branch:
            other = "negative" if self.branch == "positive" else "positive"
            return (
                f"the model ran without the {self.branch} branch, as it does at cfg 1; raise cfg, or steer the "
                f"{other} branch."
            )
        if run.faded:
            return (
                f"its schedule, {self.window}, makes its strength 0 at each step of the run; use more steps, or "
                "another schedule."
            )
        if run.outside:
            return (
                f"none of its steps lies in the window of the map, {self.window.start:g} to {self.window.end:g} of the "
                "schedule; change start_percent or end_percent."
            )
        return ""


def _note_branches(
    executor: Any, guider: Any, sigmas: Any, extra_args: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Record which conditioning is which: a call of the model only gets their uuids."""
    names: dict[uuid.UUID, str] = {}
    for name, conds in guider.conds.items():
        for cond in conds or ():
            # For a prompt with an area, the host adds a copy with the same uuid to the other branches.
            if names.setdefault(cond["uuid"], name) != name:
                cond["uuid"] = uuid.uuid4()
                names[cond["uuid"]] = name
    extra_args["model_options"].setdefault("transformer_options", {})[_BRANCHES] = names
    return executor(guider, sigmas, extra_args, *args, **kwargs)
