"""Flux: double blocks with a picture and a text stream, then single blocks."""

from __future__ import annotations

from .base import Architecture, numbered
from .mmdit import DIFFUSERS_MMDIT

# ComfyUI's names for the parts that return the same tensors as in diffusers.
_IN_COMFYUI = {
    "transformer_blocks.{}.attn.to_out.0": "double_blocks.{}.img_attn.proj",
    "transformer_blocks.{}.attn.to_add_out": "double_blocks.{}.txt_attn.proj",
    "transformer_blocks.{}.ff.net.2": "double_blocks.{}.img_mlp.2",
    "transformer_blocks.{}.ff_context.net.2": "double_blocks.{}.txt_mlp.2",
    "single_transformer_blocks.{}.proj_out": "single_blocks.{}.linear2",
}
_AUTO = ("attention", "mlp")
_DOUBLE = DIFFUSERS_MMDIT.presets

DIFFUSERS_FLUX = Architecture(
    "FluxTransformer2DModel",
    {
        **_DOUBLE,
        "norms": (*_DOUBLE["norms"], *(f"{block}.norm#0" for block in numbered("single_transformer_blocks."))),
        "attention": (*_DOUBLE["attention"], "single_transformer_blocks.*.proj_out"),
        "blocks": (*_DOUBLE["blocks"], *numbered("single_transformer_blocks.")),
    },
    auto=_AUTO,
    foldable=_AUTO,
    built_by="diffusers",
    elsewhere={"Flux": _IN_COMFYUI},
)
COMFYUI_FLUX = Architecture(
    "Flux",
    {
        "norms": ("double_blocks.*_norm[12]", "single_blocks.*.pre_norm"),
        "attention": ("double_blocks.*_attn.proj", "single_blocks.*.linear2"),
        "mlp": ("double_blocks.*_mlp.2",),
        "blocks": (*numbered("double_blocks."), *numbered("single_blocks.")),
    },
    auto=_AUTO,
    foldable=_AUTO,
    built_by="ComfyUI",
    elsewhere={"FluxTransformer2DModel": {theirs: ours for ours, theirs in _IN_COMFYUI.items()}},
)
