"""What several nodes share."""

from __future__ import annotations

import inspect
from typing import get_args

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..act_core import MapError
from ..act_core.settings import Estimator, Order, Support

CATEGORY = "ACT steering"
SITES = ["auto", "attention", "mlp", "norms", "blocks", "all"]
ACTMapIO = io.Custom("ACT_MAP")


def aliases(*words: str) -> dict[str, list[str]]:
    """Other words to find a node by, where the host knows such."""
    return {"search_aliases": list(words)} if "search_aliases" in inspect.signature(io.Schema).parameters else {}


def strength_input(name: str, tooltip: str) -> io.Float.Input:
    """A strength as LoRA loaders have it."""
    return io.Float.Input(name, default=1.0, min=-20.0, max=20.0, step=0.01, tooltip=tooltip)


def percent_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    """A place on the schedule."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)


def method_inputs() -> list[io.Combo.Input]:
    """How a map is fitted: ``estimator``, ``order`` and ``support``."""
    return [
        io.Combo.Input(
            "estimator",
            options=list(get_args(Estimator)),
            default="linear",
            tooltip="linear shifts and scales each channel, mean shifts it, gaussian matches mean and spread.",
        ),
        io.Combo.Input(
            "order",
            options=list(get_args(Order)),
            default="causal",
            tooltip="causal fits each layer while the layers before it are steered already.",
        ),
        io.Combo.Input(
            "support",
            options=list(get_args(Support)),
            default="unbounded",
            tooltip="unbounded to bring something in; observed to remove something, acting only on values that the "
            "source prompts showed.",
        ),
    ]


def lines(text: str, side: str, node: str) -> list[str]:
    """The prompts of one side, one a line."""
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if len(prompts) < 2:
        raise MapError(f"{node} has {len(prompts)} {side} prompts; give at least two, one a line.")
    return prompts


class Progress:
    """The progress bar of a node that fits; an interrupt of the user ends the fit at the next site."""

    def __init__(self, parts: int = 1) -> None:
        self._parts = parts
        self._part = -1
        self._bar = comfy.utils.ProgressBar(100 * parts)

    def __call__(self, done: int, total: int, site: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if done == 1:
            self._part = min(self._part + 1, self._parts - 1)
        self._bar.update_absolute(100 * self._part + 100 * done // total)
