"""Prepares a model for a fit, and restores it afterwards."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..components import Component
from ..errors import FitError
from ..interception import submodules
from ..interrupts import Restoring
from .memory import free_as_usual, free_at_once

# Every submodule of a model that is being fitted.
_in_use: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_lock = threading.Lock()


class Uncompiled:
    """Makes compiled modules run uncompiled, from `enter` to `leave`. PyTorch before 2.6 cannot switch this."""

    # The switch is one for all threads, whose fits may overlap.
    _lock = threading.Lock()
    _open = 0
    _stance: Any = None

    def enter(self) -> None:
        with self._lock:
            # Importing the compiler takes seconds, and before that nothing is compiled.
            if not Uncompiled._open and "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
                Uncompiled._stance = torch.compiler.set_stance("force_eager")
            Uncompiled._open += 1

    def leave(self) -> None:
        with self._lock:
            Uncompiled._open -= 1
            if not Uncompiled._open and Uncompiled._stance is not None:
                Uncompiled._stance.__exit__(None, None, None)
                Uncompiled._stance = None


class prepared(Restoring):  # noqa: N801  (used like a function)
    """A context manager that prepares a model for a fit.

    Inside the block no other thread can fit the model, all submodules are in evaluation mode (dropout would blur the
    measurements), and no gradients are recorded. Compiled modules run uncompiled: every layer that measures something
    would be compiled by itself, and a graph does not show how it makes its tensors. Afterwards each submodule is back
    in its own mode, even after Ctrl-C.

    Args:
        roots: the modules that a fit runs.
        frees_at_once: whether freed memory goes back to the system at once, see `act_core.fitting.memory`.

    Raises:
        FitError: the model is already being fitted.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1).eval())
        >>> with prepared([model]):
        ...     [module.training for module in model.modules()]
        [False, False, False]
        >>> [module.training for module in model.modules()]
        [True, True, False]
    """

    def __init__(self, roots: Iterable[nn.Module], *, frees_at_once: bool = False) -> None:
        self._modules = {module for root in roots for module in root.modules()}
        self._frees_at_once = frees_at_once
        self._uncompiled = Uncompiled()
        self._claimed = False
        self._in_training: list[nn.Module] = []
        self._records_gradients = torch.is_grad_enabled()

    def _patch(self) -> None:
        self._claim()
        self._uncompiled.enter()
        self._in_training = [module for module in self._modules if module.training]
        # Not `eval()`, which some libraries override to merge the weights of adapters.
        for module in self._in_training:
            module.training = False
        torch.set_grad_enabled(False)
        if self._frees_at_once:
            free_at_once()

    def _claim(self) -> None:
        with _lock:
            if any(module in _in_use for module in self._modules):
                raise FitError("This model is already being fitted; wait for that fit to finish.")
            _in_use.update(self._modules)
            self._claimed = True

    def _restore(self) -> None:
        if self._frees_at_once:
            free_as_usual()
        torch.set_grad_enabled(self._records_gradients)
        for module in self._in_training:
            module.training = True
        if self._claimed:
            self._uncompiled.leave()
            with _lock:
                _in_use.difference_update(self._modules)


def check_weights(components: Sequence[Component]) -> None:
    """Refuse weights on the meta device, except those that accelerate's hooks load when the model runs.

    Raises:
        FitError: a component has weights without values.
    """
    for component in components:
        for name, module in submodules(component.module).items():
            empty = [leaf for leaf, parameter in module.named_parameters(recurse=False) if parameter.is_meta]
            if empty and not hasattr(module, "_hf_hook"):
                weight = ".".join(part for part in (name, empty[0]) if part)
                raise FitError(
                    f"The weights of {component.name} are not loaded ({weight} is on the meta device); "
                    "load the model before you fit a map."
                )
