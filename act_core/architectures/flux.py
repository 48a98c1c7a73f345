"""Flux: double blocks with a picture and a text stream, then single blocks."""

from __future__ import annotations

from .base import Architecture, numbered
from .mmdit import DIFFUSERS_MMDIT
from .shared_names import SharedNames

_SHARED = (
    SharedNames(
        {
            # Both return two streams, in opposite orders. The single blocks of diffusers split what they return.
            "transformer_blocks.{}#0": "double_blocks.{}#1",
            "transformer_blocks.{}#1": "double_blocks.{}#0",
            "transformer_blocks.{}.norm1.norm": "double_blocks.{}.img_norm1",
            "transformer_blocks.{}.norm1_context.norm": "double_blocks.{}.txt_norm1",
            "transformer_blocks.{}.norm2": "double_blocks.{}.img_norm2",
            "transformer_blocks.{}.norm2_context": "double_blocks.{}.txt_norm2",
            "transformer_blocks.{}.attn.to_out.0": "double_blocks.{}.img_attn.proj",
            "transformer_blocks.{}.attn.to_add_out": "double_blocks.{}.txt_attn.proj",
            "transformer_blocks.{}.ff": "double_blocks.{}.img_mlp",
            "transformer_blocks.{}.ff.net.0.proj": "double_blocks.{}.img_mlp.0",
            "transformer_blocks.{}.ff.net.2": "double_blocks.{}.img_mlp.2",
            "transformer_blocks.{}.ff_context": "double_blocks.{}.txt_mlp",
            "transformer_blocks.{}.ff_context.net.0.proj": "double_blocks.{}.txt_mlp.0",
            "transformer_blocks.{}.ff_context.net.2": "double_blocks.{}.txt_mlp.2",
            "single_transformer_blocks.{}.norm.norm": "single_blocks.{}.pre_norm",
            "single_transformer_blocks.{}.proj_out": "single_blocks.{}.linear2",
            "x_embedder": "img_in",
            "context_embedder": "txt_in",
            "norm_out.norm": "final_layer.norm_final",
            "proj_out": "final_layer.linear",
        },
        variant="Flux",
    ),
)
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
    shared=_SHARED,
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
    shared=_SHARED,
)
