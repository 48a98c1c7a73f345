"""Wan 2.1 and 2.2 (video), and their variants, which share a base class in ComfyUI."""

from __future__ import annotations

from .base import Architecture, numbered
from .shared_names import SharedNames

_SHARED = (
    SharedNames(
        {
            "blocks.{}": "blocks.{}",
            "blocks.{}.norm1": "blocks.{}.norm1",
            "blocks.{}.norm2": "blocks.{}.norm3",
            "blocks.{}.norm3": "blocks.{}.norm2",
            "blocks.{}.attn1": "blocks.{}.self_attn",
            "blocks.{}.attn1.to_out.0": "blocks.{}.self_attn.o",
            "blocks.{}.attn2": "blocks.{}.cross_attn",
            "blocks.{}.attn2.to_out.0": "blocks.{}.cross_attn.o",
            "blocks.{}.ffn": "blocks.{}.ffn",
            "blocks.{}.ffn.net.0.proj": "blocks.{}.ffn.0",
            "blocks.{}.ffn.net.2": "blocks.{}.ffn.2",
            "condition_embedder.text_embedder.linear_1": "text_embedding.0",
            "condition_embedder.text_embedder.linear_2": "text_embedding.2",
            "patch_embedding": "patch_embedding",
            "norm_out": "head.norm",
            "proj_out": "head.head",
        }
    ),
)

# Its parts are found by rule.
DIFFUSERS_WAN = Architecture("WanTransformer3DModel", built_by="diffusers", shared=_SHARED)
WAN = Architecture(
    "WanModel",
    {
        "norms": ("blocks.*.norm[123]",),
        "attention": ("blocks.*.self_attn.o", "blocks.*.cross_attn.o"),
        # Not its last layer, which quantised models bypass.
        "mlp": ("blocks.*.ffn",),
        "blocks": numbered("blocks."),
    },
    auto=("attention", "mlp"),
    foldable=("attention",),
    built_by="ComfyUI",
    shared=_SHARED,
)
