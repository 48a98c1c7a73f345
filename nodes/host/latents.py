"""Empty latents of the size and shape that a MODEL samples."""

from __future__ import annotations

import inspect
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...act_core.errors import FitError

# Attachment of a MODEL: the default side length of its pictures in pixels.
SIZE = "act_size"
# Usual width and height in pixels, by class of the host's model configuration or a base class of it. These are the
# defaults of the host's own nodes for empty latents.
_DEFAULT = 1024, 1024
_USUAL = {
    "SD15": (512, 512),
    "SD20": (512, 512),
    "Stable_Zero123": (256, 256),
    "HunyuanImage21": (2048, 2048),
    "HunyuanImage21Refiner": (2048, 2048),
    "Kandinsky5Image": _DEFAULT,
    "HiDreamO1": (2048, 2048),
    "WAN22_T2V": (1280, 704),
    "WAN21_T2V": (832, 480),
    "HunyuanVideo": (848, 480),
    "HunyuanVideo15": (848, 480),
    "GenmoMochi": (848, 480),
    "CogVideoX_T2V": (720, 480),
    "Kandinsky5": (768, 512),
    "LTXV": (768, 512),
    "CosmosT2V": (1280, 704),
    "CosmosI2VPredict2": (848, 480),
    "MiniMaxH3": (1344, 768),
    "SVD_img2vid": (1024, 576),
    "SV3D_u": (576, 576),
}
# Pixels per latent, for hosts whose latent formats do not have this number.
_OLDER_RATIOS = {"HunyuanImage21": 32, "LTXV": 32, "Wan22": 16, "ChromaRadiance": 1, "SC_Prior": 42, "SC_B": 4}
# Audio models whose latents have the shape of a picture's.
_AUDIO = ("ACEStep",)


def fixed_latent(model: Any, latent: dict[str, Any]) -> Tensor:
    """The samples of a latent from the graph; an empty one is adapted to the channels and downscaling of the model."""
    adapt = comfy.sample.fix_empty_latent_channels
    # Older hosts do not take the downscaling of the latent.
    ratios = {"downscale_ratio_spacial", "downscale_ratio_temporal"} & {*inspect.signature(adapt).parameters}
    return adapt(model, latent["samples"], **{name: latent[name] for name in ratios if name in latent})


def empty_latent(model: Any, width: int, height: int) -> Tensor:
    """An empty latent for one picture, ``[1, channels, height, width]``, or ``[1, channels, 1, height, width]``.

    The latter is for models whose latents have frames, and stands for a single one.

    Args:
        model: a MODEL.
        width, height: in pixels, rounded down to what models can divide into tokens; 0 for the model's usual size.

    Raises:
        FitError: the model does not make pictures, or not of that size.
    """
    latent_format = model.get_model_object("latent_format")
    dimensions = getattr(latent_format, "latent_dimensions", 2)
    kinds = [kind.__name__ for kind in type(model.model.model_config).__mro__]
    if dimensions < 2 or any(kind in _AUDIO for kind in kinds):
        raise FitError("This model does not make pictures; connect an empty latent of the kind that it samples.")
    side = model.get_attachment(SIZE)
    usual = (side, side) if side else next((_USUAL[kind] for kind in kinds if kind in _USUAL), _DEFAULT)
    older = _OLDER_RATIOS.get(type(latent_format).__name__, 8)
    factor = getattr(latent_format, "spacial_downscale_ratio", older)
    sides = [(height or usual[1]) // factor, (width or usual[0]) // factor]
    if min(sides) < 1:
        raise FitError(f"Pictures of {width} x {height} are too small; give at least {factor} pixels on each side.")
    module = model.get_model_object("diffusion_model")
    if patches := getattr(module, "pos_embed_max_size", None):
        largest = patches * module.patch_size * factor
        if max(width, height) > largest:
            raise FitError(f"Pictures of {width} x {height} are too large for this model; it goes up to {largest}.")
    # Many models join 2 x 2 latents into a token, those without an autoencoder up to 32 x 32 pixels.
    step = 2 if factor > 1 else 32
    sides = [side // step * step or side for side in sides]
    return torch.zeros([1, latent_format.latent_channels, *[1] * (dimensions - 2), *sides])
