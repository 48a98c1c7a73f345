"""Putting maps onto a MODEL, a CLIP, or the conditioning of a region."""

from __future__ import annotations

import logging
import uuid
from typing import Any, Literal
from weakref import WeakKeyDictionary

from comfy.hooks import EnumHookScope, HookGroup, TransformerOptionsHook
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import nn

from ...act_core import ActMap, MapError, steer
from ...act_core.steering import BatchRows, Steering
from .modules import DIFFUSION_MODEL, diffusion_model, path_in_clip, text_encoders

KEY = "act_steering"
_BRANCHES = "act_branches"
# Of a CLIP's model, the method that all encoding goes through.
_ENCODE = "encode_token_weights"

Branch = Literal["positive", "both", "negative"]


class ModelSteering:
    """A map on one clone of a MODEL: put on at each call of the model, and taken off right after it.

    Args:
        act_map: holds sites of the diffusion model.
        strength: of the map.
        start, end: part of the schedule in which it acts, from 0 to 1; a step at the very end is left out.
        branch: half of the batch that is moved under classifier-free guidance.
    """

    def __init__(
        self, act_map: ActMap, strength: float = 1.0, start: float = 0.0, end: float = 1.0, branch: Branch = "positive"
    ) -> None:
        if not start <= end:
            raise MapError(
                f"The map would end at {end:g} of the schedule, before it starts at {start:g}; swap the two."
            )
        self.act_map = act_map
        self.strength = strength
        self.start, self.end = start, end
        self.branch: Branch = branch
        # One for each replica of the model, which a host with several devices runs at the same time.
        self._steerings: WeakKeyDictionary[nn.Module, tuple[Steering, BatchRows]] = WeakKeyDictionary()
        self._due: set[Steering] = set()

    def patched(self, model: Any) -> Any:
        """A clone of a MODEL that is steered.

        Raises:
            MapError: no site of the map is in the model.
        """
        for warning in self._on(diffusion_model(model).module)[0].warnings:
            logging.warning("ACT Steering: %s", warning)
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self._sample)
        clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _note_branches)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self.call)
        return clone

    def call(self, executor: Any, *args: Any, strength: float | None = None, **kwargs: Any) -> Any:
        """Around one call of the model: ``x, t, c_concat, c_crossattn, control, transformer_options``."""
        options = args[5] if len(args) > 5 else kwargs.get("transformer_options", {})
        model = executor.class_obj
        parts, of = self._parts(options)
        if parts == () or not self._within(model.model_sampling, options):
            return executor(*args, **kwargs)
        steering, rows = self._on(diffusion_model(model).module)
        rows.choose(parts, of)
        strength = self.strength if strength is None else strength
        if strength != steering.strength:
            steering.strength = strength
        with steering:
            output = executor(*args, **kwargs)
        if strength and steering not in self._due:
            # Once a run: what fires at the first call fires at all.
            steering.check()
            self._due.add(steering)
        return output

    def _on(self, module: nn.Module) -> tuple[Steering, BatchRows]:
        if module not in self._steerings:
            rows = BatchRows()
            steering = steer({DIFFUSION_MODEL: module}, self.act_map, self.strength, rows={DIFFUSION_MODEL: rows})
            self._steerings[module] = steering, rows
        return self._steerings[module]

    def _within(self, model_sampling: Any, options: dict[str, Any]) -> bool:
        if self.start <= 0 and self.end >= 1:
            return True
        # At sampling time, since a node that shifts the schedule may come after ours.
        sigma = float(options["sigmas"].max())
        first, last = (float(model_sampling.percent_to_sigma(percent)) for percent in (self.start, self.end))
        return last < sigma <= first

    def _parts(self, options: dict[str, Any]) -> tuple[tuple[int, ...] | None, int]:
        """The parts of the batch that are the branch, and of how many."""
        uuids, names = options.get("uuids") or (), options.get(_BRANCHES, {})
        if uuids and all(uuid in names for uuid in uuids):
            branches = ["negative" if "negative" in names[uuid] else "positive" for uuid in uuids]
        else:
            branches = ["negative" if index == 1 else "positive" for index in options.get("cond_or_uncond") or (0,)]
        parts = tuple(number for number, branch in enumerate(branches) if self.branch in ("both", branch))
        return (None, 1) if len(parts) == len(branches) else (parts, len(branches))

    def _sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around a sampling run, to tell afterwards what has fired."""
        self._due.clear()
        output = executor(*args, **kwargs)
        for steering in self._due:
            _log_coverage(steering)
        return output


def _note_branches(
    executor: Any, guider: Any, sigmas: Any, extra_args: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Note which conditioning is which: at a call of the model only their uuids are known."""
    names: dict[uuid.UUID, str] = {}
    for name, conds in guider.conds.items():
        for cond in conds or ():
            # Beside a prompt for an area the host puts a copy of it into the other branches, with the uuid it has.
            if names.setdefault(cond["uuid"], name) != name:
                cond["uuid"] = uuid.uuid4()
                names[cond["uuid"]] = name
    extra_args["model_options"].setdefault("transformer_options", {})[_BRANCHES] = names
    return executor(guider, sigmas, extra_args, *args, **kwargs)


def is_steered(model: Any) -> bool:
    """Whether a map is on a MODEL already."""
    return bool(model.wrappers.get(WrappersMP.APPLY_MODEL, {}).get(KEY))


def is_steered_clip(clip: Any) -> bool:
    """Whether a map is on a CLIP already."""
    return bool(clip.patcher.get_attachment(KEY))


def steered_clip(clip: Any, act_map: ActMap, strength: float) -> Any:
    """A clone of a CLIP whose text encoders are steered.

    Raises:
        MapError: no site of the map is in them.
    """
    own = [f"{name}/*" for name in act_map.components if name != DIFFUSION_MODEL]
    act_map = act_map.restrict(*own) if own else act_map
    steering = steer({part.name: part.module for part in text_encoders(clip)}, act_map, strength)
    for warning in steering.warnings:
        logging.warning("ACT Steering: %s", warning)
    clone = clip.clone()

    def before(component: str, site: str) -> Any:
        return clone.patcher.get_model_object(path_in_clip(component, site))

    for (component, site), forward in steering.forwards(before).items():
        clone.patcher.add_object_patch(path_in_clip(component, site), forward)
    encode = clone.patcher.get_model_object(_ENCODE)

    def encode_and_tell(*args: Any, **kwargs: Any) -> Any:
        output = encode(*args, **kwargs)
        steering.check()
        _log_coverage(steering)
        return output

    clone.patcher.add_object_patch(_ENCODE, encode_and_tell)
    clone.patcher.set_attachments(KEY, True)
    return clone


def _log_coverage(steering: Steering) -> None:
    logging.info("ACT Steering: %s: %s.", steering.act_map.card.title or "map", steering.coverage)


class ACTHook(TransformerOptionsHook):
    """Steers the diffusion model only for the conditioning that the hook is attached to."""

    def __init__(self, steering: ModelSteering | None = None) -> None:
        super().__init__(transformers_dict={}, hook_scope=EnumHookScope.HookedOnly)
        self.steering = steering

    def clone(self) -> ACTHook:
        copy = super().clone()
        copy.steering = self.steering
        return copy

    def on_apply_hooks(self, model: Any, transformer_options: dict[str, Any]) -> None:
        # Bound to this very clone: keyframes change its strength, and not that of the hook it was cloned from.
        def call(executor: Any, *args: Any, **kwargs: Any) -> Any:
            assert self.steering is not None
            return self.steering.call(executor, *args, strength=self.steering.strength * self.strength, **kwargs)

        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, call, transformer_options)


def hook_group(steering: ModelSteering, before: HookGroup | None) -> HookGroup:
    """The hooks so far, and ours."""
    group = before.clone() if before is not None else HookGroup()
    group.add(ACTHook(steering))
    return group
