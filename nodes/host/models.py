"""The part of a MODEL that holds sites, and what is marked and logged about steering it."""

from __future__ import annotations

import logging
from typing import Any

from comfy.patcher_extension import WrappersMP
from comfy.supported_models_base import BASE
from torch import nn

from ...act_core.architectures import architecture_of
from ...act_core.components import DIFFUSION_MODEL, Component
from ...act_core.steering import Steering

# Keys under which the host stores our objects.
KEY = "act_steering"


def diffusion_model(model: Any) -> Component:
    """The diffusion model in a MODEL, or in the host's model inside it."""
    inner = getattr(model, "model", model)
    module: nn.Module = inner.diffusion_model
    module = getattr(module, "_orig_mod", module)  # unwrap a compiled model
    return Component(DIFFUSION_MODEL, module, architecture_of(module), variants=_variants(inner))


def _variants(model: Any) -> tuple[str, ...]:
    """Class of the configuration of the host's model, and its base classes.

    The host builds several models from one class: Flux and LongCat-Image, HunyuanVideo and HunyuanImage.
    """
    kinds = type(getattr(model, "model_config", None)).__mro__
    return tuple(dict.fromkeys(kind.__name__ for kind in kinds if issubclass(kind, BASE) and kind is not BASE))


def log_remarks(steering: Steering) -> None:
    """Log the notes and warnings of a map on a model."""
    for note in steering.notes:
        logging.info("ACT Steering: %s", note)
    for warning in steering.warnings:
        logging.warning("ACT Steering: %s", warning)


def weight_patches(patcher: Any, what: str) -> tuple[str, ...]:
    """Other patches on a model, for the record of a map that is fitted on it.

    Args:
        patcher: the host's patcher of the model.
        what: description of the model.
    """
    count = len(patcher.patches)
    return (f"{count} weights of the {what} patched, as by a LoRA",) if count else ()


def forget_prompts(module: nn.Module) -> None:
    """Drop what HiDream-O1 keeps of prompts between calls: it depends on the map, and hides tokens from it."""
    if getattr(module, "_kv_cache_entries", None):
        setattr(module, "_kv_cache_entries", [])  # noqa: B010  (not an attribute that every module has)


def is_steered(model: Any) -> bool:
    """Whether a MODEL is already steered."""
    return bool(model.wrappers.get(WrappersMP.APPLY_MODEL, {}).get(KEY))


def is_steered_clip(clip: Any) -> bool:
    """Whether a CLIP is already steered."""
    return bool(clip.patcher.get_attachment(KEY))
