"""Progress bars of nodes, which also check for interrupts."""

from __future__ import annotations

import comfy.model_management
import comfy.utils


class FitProgress:
    """The bar of a fit; an interrupt ends the fit at the next site.

    Args:
        parts: number of fits that run one after the other.
    """

    def __init__(self, parts: int = 1) -> None:
        self._parts = parts
        self._part = -1
        self._bar = comfy.utils.ProgressBar(100 * parts)

    def __call__(self, done: int, total: int, site: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not done:  # preparing
            return
        if done == 1:
            self._part = min(self._part + 1, self._parts - 1)
        self._bar.update_absolute(100 * self._part + 100 * done // total)


class StepProgress:
    """The bar of a task with equal steps; an interrupt ends it at the next step."""

    def __init__(self, steps: int) -> None:
        self._bar = comfy.utils.ProgressBar(steps)

    def __call__(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update(1)
