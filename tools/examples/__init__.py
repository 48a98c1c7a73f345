"""The example workflows, each a function that builds its graph node by node."""

from __future__ import annotations

from collections.abc import Callable

from tools.comfyui.server import Graph

from .fitting import fit_your_own, style_from_pictures
from .language import fit_text_map, steered_prompt
from .measuring import calibrate_and_export, compare_and_blend, strength_sweep
from .pictures import map_stack, regions, removal, style_app, style_slider, text_encoder_slider

WORKFLOWS: tuple[Callable[[Graph], None], ...] = (
    style_slider,
    style_app,
    fit_your_own,
    style_from_pictures,
    strength_sweep,
    map_stack,
    removal,
    regions,
    text_encoder_slider,
    calibrate_and_export,
    compare_and_blend,
    steered_prompt,
    fit_text_map,
)
