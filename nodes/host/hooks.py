"""A map on the conditioning of a region, as one of the host's hooks."""

from __future__ import annotations

from typing import Any

from comfy.hooks import EnumHookScope, HookGroup, TransformerOptionsHook
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...act_core import ActMap
from ...act_core.components import DIFFUSION_MODEL
from ...act_core.errors import MapMismatchError
from .model_steering import ModelSteering
from .models import KEY


class ACTHook(TransformerOptionsHook):
    """Steers the diffusion model only for the conditioning that the hook is attached to."""

    def __init__(self, steering: ModelSteering | None = None) -> None:
        super().__init__(transformers_dict={}, hook_scope=EnumHookScope.HookedOnly)
        self.steering = steering

    def clone(self) -> ACTHook:
        clone = super().clone()
        clone.steering = self.steering
        return clone

    def on_apply_hooks(self, model: Any, transformer_options: dict[str, Any]) -> None:
        # Bound to this clone: keyframes change its strength, not that of the hook it was cloned from.
        def call(executor: Any, *args: Any, **kwargs: Any) -> Any:
            assert self.steering is not None
            return self.steering.call(executor, *args, strength=self.steering.strength * self.strength, **kwargs)

        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, call, transformer_options)


def hook_group(act_map: ActMap, strength: float, before: HookGroup | None) -> HookGroup:
    """The given hooks, plus one that applies a map.

    Raises:
        MapError: the map does not steer a diffusion model, or the strength is not a number.
    """
    if DIFFUSION_MODEL not in act_map.components:
        raise MapMismatchError(
            "This map steers only text encoders, which a hook cannot do; use Apply ACT Steering (CLIP only)."
        )
    group = before.clone() if before is not None else HookGroup()
    # Only the hooked conditioning runs while the hook acts, so the whole batch is steered.
    group.add(ACTHook(ModelSteering(act_map, strength, branch="both")))
    return group
