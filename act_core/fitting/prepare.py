"""Getting a model ready for a fit, and making it exactly what it was afterwards."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

import torch
from torch import nn

from ..errors import FitError
from ..interrupts import begin, critical, end, raise_deferred
from .memory import free_as_usual, free_at_once

# Every submodule of a model that is being fitted.
_in_use: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_lock = threading.Lock()


class prepared:  # noqa: N801  (used like a function)
    """A context manager in whose block a model can be fitted.

    Nobody else fits the model meanwhile. All submodules are in evaluation mode, since dropout would blur what is
    measured, and no gradients are recorded. Afterwards each submodule has its own mode again, even after Ctrl-C.

    Args:
        roots: the modules that a fit runs.
        frees_at_once: whether freed memory goes back to the system at once, see `act_core.fitting.memory`.

    Raises:
        FitError: the model is being fitted already.

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
        self._claimed = False
        self._in_training: list[nn.Module] = []
        self._records_gradients = torch.is_grad_enabled()

    @critical
    def __enter__(self) -> None:
        self._began = begin()
        try:
            self._claim()
            self._in_training = [module for module in self._modules if module.training]
            # Not `eval()`, which some libraries extend: adapters merge their weights in it.
            for module in self._in_training:
                module.training = False
            torch.set_grad_enabled(False)
            if self._frees_at_once:
                free_at_once()
            raise_deferred()
        except BaseException:
            self._undo()
            end(self._began)
            raise

    @critical
    def __exit__(self, *_: object) -> None:
        self._undo()
        end(self._began)

    def _claim(self) -> None:
        with _lock:
            if any(module in _in_use for module in self._modules):
                raise FitError("This model is being fitted already; wait until that fit has ended.")
            _in_use.update(self._modules)
            self._claimed = True

    def _undo(self) -> None:
        if self._frees_at_once:
            free_as_usual()
        torch.set_grad_enabled(self._records_gradients)
        for module in self._in_training:
            module.training = True
        if self._claimed:
            with _lock:
                _in_use.difference_update(self._modules)
