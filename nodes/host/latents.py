"""Empty latents of the size and shape that a MODEL samples."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...act_core.errors import FitError

# Attachment of a MODEL: the default side length of its pictures in pixels.
SIZE = "act_size"
_SMALL_MODELS = ("SD15", "SD20")


def fixed_latent(model: Any, latent: dict[str, Any]) -> Tensor:
    """The samples of a latent from the graph; an empty one is adapted to the channels and downscaling of the model."""
    given = {name: latent[name] for name in ("downscale_ratio_spacial", "downscale_ratio_temporal") if name in latent}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **given)


def empty_latent(model: Any, width: int, height: int) -> Tensor:
    """An empty latent ``[1, channels, height, width]`` for one picture.

    Args:
        model: a MODEL.
        width, height: in pixels; 0 for the model's usual size.

    Raises:
        FitError: the model does not make pictures, or not of that size.
    """
    latent_format = model.get_model_object("latent_format")
    if getattr(latent_format, "latent_dimensions", 2) != 2:
        raise FitError("This model does not make still pictures; connect an empty latent of the kind that it samples.")
    small = type(model.model.model_config).__name__ in _SMALL_MODELS
    usual = model.get_attachment(SIZE) or (512 if small else 1024)
    factor = getattr(latent_format, "spacial_downscale_ratio", 8)
    sides = [(side or usual) // factor for side in (height, width)]
    if min(sides) < 1:
        raise FitError(f"Pictures of {width} x {height} are too small; give at least {factor} pixels on each side.")
    module = model.get_model_object("diffusion_model")
    if patches := getattr(module, "pos_embed_max_size", None):
        largest = patches * module.patch_size * factor
        if max(width, height) > largest:
            raise FitError(f"Pictures of {width} x {height} are too large for this model; it goes up to {largest}.")
    return torch.zeros([1, latent_format.latent_channels, *sides])
