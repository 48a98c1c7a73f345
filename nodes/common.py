"""What several nodes share."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "ACT steering"
ACTMapIO = io.Custom("ACT_MAP")


def strength_input(name: str, tooltip: str) -> io.Float.Input:
    """A strength as LoRA loaders have it."""
    return io.Float.Input(name, default=1.0, min=-20.0, max=20.0, step=0.01, tooltip=tooltip)


def percent_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    """A place on the schedule."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)
