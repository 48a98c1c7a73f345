"""Wan 2.1 and 2.2 (video), and their variants, which share a base class in ComfyUI."""

from __future__ import annotations

from .base import Architecture, numbered

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
)
