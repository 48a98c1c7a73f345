"""Keeps the host's models from changing activations in place, which the gradient needs as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import comfy.model_management
from torch import Tensor, nn

from ...act_core.interception import own_forward, restore_forward
from ...act_core.interrupts import Restoring


class training(Restoring):  # noqa: N801  (used like a function)
    """A context manager inside which a model can be differentiated without PyTorch's slow mode for such changes.

    Diffusion models have a switch of the host's. Text encoders add to the very activations that a norm has read, so
    here their norms read copies.

    Args:
        encoders: modules with text encoders.
    """

    def __init__(self, encoders: Iterable[nn.Module]) -> None:
        found = (module for root in encoders for module in root.modules())
        self._norms = [module for module in found if "Norm" in type(module).__name__]
        self._before: dict[nn.Module, object] = {}
        self._management: Any = comfy.model_management
        # Older hosts have none.
        self._switch = getattr(self._management, "in_training", None)

    def _patch(self) -> None:
        for norm in self._norms:
            self._before[norm] = own_forward(norm)
            norm.__dict__["forward"] = _of_copy(norm.forward)
        if self._switch is not None:
            self._management.in_training = True

    def _restore(self) -> None:
        if self._switch is not None:
            self._management.in_training = self._switch
        for norm, forward in self._before.items():
            restore_forward(norm.__dict__, forward)
        self._before.clear()


def _of_copy(forward: Callable[..., Any]) -> Callable[..., Any]:
    def reading_a_copy(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(x.clone(), *args, **kwargs)

    return reading_a_copy
