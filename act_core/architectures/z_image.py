"""Z-Image: text and picture have refiners of their own, then share a stream. Its parts are found by rule."""

from __future__ import annotations

from .base import Architecture
from .shared_names import SharedNames

_INSIDE = {
    "": "",
    ".attention": ".attention",
    ".attention.to_out.0": ".attention.out",
    ".feed_forward": ".feed_forward",
    **{f".feed_forward.w{number}": f".feed_forward.w{number}" for number in (1, 2, 3)},
    **{f".{norm}": f".{norm}" for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")},
}
_STACKS = ("layers.{}", "noise_refiner.{}", "context_refiner.{}")
_FINAL = {f"all_final_layer.2-1.{part}": f"final_layer.{part}" for part in ("norm_final", "linear")}

_SHARED = (
    SharedNames(
        {f"{stack}{theirs}": f"{stack}{ours}" for stack in _STACKS for theirs, ours in _INSIDE.items()} | _FINAL,
        variant="ZImage",
        swaps_streams=True,  # the picture comes first in diffusers, the text in ComfyUI
    ),
)

DIFFUSERS_Z_IMAGE = Architecture("ZImageTransformer2DModel", built_by="diffusers", shared=_SHARED)
# ComfyUI builds Lumina 2 from the same class.
COMFYUI_Z_IMAGE = Architecture("NextDiT", built_by="ComfyUI", shared=_SHARED)
