"""Helpers that several nodes share: common inputs, and reading of connected texts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..act_core import MapError
from ..act_core.errors import FitError
from ..act_core.prompts import prompt_lines
from ..act_core.settings import (
    END_TO_END_PURPOSE,
    SITE_PRESETS,
    Branch,
    ChannelEstimator,
    FitSettings,
    choices,
    purpose,
)

CATEGORY = "ACT steering"
MAX_STRENGTH = 20.0  # limit of the widgets, as on LoRA loaders
MAX_PROMPTS = 4096
MAX_SIDE = 16384  # pixels
STRENGTH = "0 turns it off, 1 applies the full map, negative values reverse it."
# Not that of `FitSettings`, where a pattern is one more value of the same setting.
_SITES = (
    "Which layers are steered. auto selects what works best for this kind of model; pattern takes layers of your own "
    "choice."
)
ACTMapIO = io.Custom("ACT_MAP")
ACTMapStackIO = io.Custom("ACT_MAP_STACK")
# A slider over the whole range could not be set precisely.
_MAX_SLIDER = 2.0
# From blue for the opposite of a map, over grey, to orange.
_SLIDER_COLOURS = [
    {"offset": offset, "color": colour}
    for offset, colour in ((0.0, [66, 135, 245]), (0.5, [128, 128, 128]), (1.0, [245, 140, 40]))
]


def aliases(*words: str) -> dict[str, list[str]]:
    """Search aliases of a node, on hosts that support them."""
    return {"search_aliases": list(words)} if "search_aliases" in inspect.signature(io.Schema).parameters else {}


def strength_input(name: str, tooltip: str, *, optional: bool = False) -> io.Float.Input:
    """A strength: a slider on hosts that have coloured ones, else a number with the range that LoRA loaders have.

    A node with strengths derives from `WithStrengths`, so that graphs may go beyond the ends of the slider.
    """
    slider = getattr(io.NumberDisplay, "gradient_slider", None)
    limit = MAX_STRENGTH if slider is None else _MAX_SLIDER
    colours = {} if slider is None else {"display_mode": slider, "gradient_stops": _SLIDER_COLOURS}
    return io.Float.Input(
        name, default=1.0, min=-limit, max=limit, step=0.01, tooltip=tooltip, optional=optional, **colours
    )


class WithStrengths:
    """A node whose strengths may go beyond the ends of their sliders, as in graphs from before there were sliders."""

    @classmethod
    def validate_inputs(cls, strength: float | None = 0.0, strength_clip: float | None = 0.0) -> bool | str:
        """In place of the host's own check of the two inputs; either may be connected, or missing."""
        return outside_limits({"strength": strength, "strength_clip": strength_clip})


def outside_limits(strengths: Mapping[str, float | None]) -> bool | str:
    """What a node answers to the host about its strengths: True, or which of them is too large.

    Args:
        strengths: by input; None where the value comes from another node, which has not run yet.
    """
    for name, value in strengths.items():
        if value is not None and abs(value) > MAX_STRENGTH:
            return f"{name} is {value:g}; it must be a number from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}."
    return True


def pixels_of(picture: Image.Image) -> Tensor:
    """An RGB picture as an IMAGE: float32 ``[1, height, width, 3]`` from 0 to 1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def calibrated_input() -> io.Boolean.Input:
    """Whether a strength is a position on the even scale of the map's calibration."""
    return io.Boolean.Input(
        "calibrated",
        default=False,
        # Optional, or the host would refuse graphs from before it existed.
        optional=True,
        tooltip="Strengths from 0 to 1 (or -1) are the recommended range of the map, in steps that look equal. Needs a "
        "map from Calibrate ACT Map.",
    )


def branch_input(tooltip: str = "", *, optional: bool = False) -> io.Combo.Input:
    """Which half of the batch a map steers under guidance."""
    usual = "The half of the batch to steer under guidance (CFG), as in Apply ACT Steering."
    return io.Combo.Input(
        "branch", options=list(get_args(Branch)), default="positive", optional=optional, tooltip=tooltip or usual
    )


def percent_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    """A position on the sampling schedule."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)


def method_inputs(*, end_to_end: bool = False) -> list[io.Combo.Input]:
    """How a map is fitted: ``estimator``, ``order`` and ``support``, as `FitSettings` has them.

    Args:
        end_to_end: whether to offer the estimator that needs gradients.
    """
    words, tooltip = choices("estimator"), f"{purpose('estimator')} {END_TO_END_PURPOSE}"
    if not end_to_end:
        words, tooltip = get_args(ChannelEstimator), ""
    return [_setting("estimator", words, tooltip), *(_setting(name, choices(name)) for name in ("order", "support"))]


def sites_input(tooltip: str = "") -> io.Combo.Input:
    """Which layers a map steers.

    Args:
        tooltip: in place of the usual one, for a node without `pattern_input`.
    """
    return _setting("sites", SITE_PRESETS, tooltip or _SITES)


def size_inputs() -> list[io.Int.Input]:
    """``width`` and ``height`` of the pictures of a fit."""
    return [
        io.Int.Input(
            side,
            default=0,
            min=0,
            max=MAX_SIDE,
            step=8,
            tooltip=f"{side.capitalize()} of the pictures in pixels; 0 uses the model's usual size.",
        )
        for side in ("width", "height")
    ]


def steered_clip_input() -> io.Clip.Input:
    """The text encoders that a map steers."""
    return io.Clip.Input(
        "clip",
        optional=True,
        tooltip="Its text encoders. Use the steered CLIP for the positive prompt only: guidance cancels any change "
        "that is made to both prompts.",
    )


def pattern_input() -> io.String.Input:
    """Layers of the user's own choice in place of ``sites``."""
    return io.String.Input(
        "pattern",
        default="",
        optional=True,
        tooltip="Layers of your own choice in place of sites: comma-separated patterns such as *.attn.to_out.0 or "
        "*single_blocks.*. An error about sites lists the closest names.",
    )


def _setting(name: str, options: Sequence[str], tooltip: str = "") -> io.Combo.Input:
    default = getattr(FitSettings(), name)
    return io.Combo.Input(name, options=list(options), default=default, tooltip=tooltip or purpose(name))


def prompts_of(text: object, side: str, node: str) -> list[str]:
    """The prompts of one side of a fit: one per line, without empty lines and comments.

    Args:
        text: a text, or a list of texts from another node.
        side: ``source`` or ``target``.
        node: display name of the node, for errors.

    Raises:
        FitError: not a text, or fewer than two prompts.
    """
    texts = list(_flat(text))
    for item in texts:
        if not isinstance(item, str):
            raise FitError(
                f"{side} of {node} is of type {type(item).__name__}; connect a text with one prompt per line."
            )
    prompts = [prompt for item in texts for prompt in prompt_lines(str(item))]
    if len(prompts) < 2:
        raise FitError(f"{node} needs at least two {side} prompts, one per line, but got {len(prompts)}.")
    return prompts


def _flat(value: object) -> Sequence[object]:
    if isinstance(value, (list, tuple)):
        return [item for part in value for item in _flat(part)]
    return [value]


def only(name: str, value: Any) -> Any:
    """The single value of an input, in a node whose inputs are lists (``is_input_list``); plain values pass through.

    Raises:
        MapError: a list of several was connected.
    """
    if not isinstance(value, list):
        return value
    values: list[Any] = value
    if len(values) != 1:
        raise MapError(f"{name} got a list of {len(values)}; connect one value.")
    return values[0]


def one_text(value: object, name: str, node: str) -> str:
    """Check that a text input is a text.

    Raises:
        MapError: something else is connected, such as a list.
    """
    if not isinstance(value, str):
        raise MapError(f"The {name} of {node} is of type {type(value).__name__}; connect one text.")
    return value
