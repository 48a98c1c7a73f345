"""Multimodal diffusion transformers: Stable Diffusion 3 and 3.5. Both streams are steered: picture and text."""

from __future__ import annotations

from .base import Architecture, numbered
from .shared_names import SharedNames

_SHARED = (
    SharedNames(
        {
            "transformer_blocks.{}#0": "joint_blocks.{}#0",
            "transformer_blocks.{}#1": "joint_blocks.{}#1",
            # The norms that hold these two in diffusers return modulated values.
            "transformer_blocks.{}.norm1.norm": "joint_blocks.{}.x_block.norm1",
            "transformer_blocks.{}.norm1_context.norm": "joint_blocks.{}.context_block.norm1",
            "transformer_blocks.{}.norm2": "joint_blocks.{}.x_block.norm2",
            "transformer_blocks.{}.norm2_context": "joint_blocks.{}.context_block.norm2",
            "transformer_blocks.{}.attn.to_out.0": "joint_blocks.{}.x_block.attn.proj",
            "transformer_blocks.{}.attn.to_add_out": "joint_blocks.{}.context_block.attn.proj",
            "transformer_blocks.{}.attn2.to_out.0": "joint_blocks.{}.x_block.attn2.proj",
            "transformer_blocks.{}.ff": "joint_blocks.{}.x_block.mlp",
            "transformer_blocks.{}.ff.net.0.proj": "joint_blocks.{}.x_block.mlp.fc1",
            "transformer_blocks.{}.ff.net.2": "joint_blocks.{}.x_block.mlp.fc2",
            "transformer_blocks.{}.ff_context": "joint_blocks.{}.context_block.mlp",
            "transformer_blocks.{}.ff_context.net.0.proj": "joint_blocks.{}.context_block.mlp.fc1",
            "transformer_blocks.{}.ff_context.net.2": "joint_blocks.{}.context_block.mlp.fc2",
            "context_embedder": "context_embedder",
            "pos_embed.proj": "x_embedder.proj",
            "norm_out.norm": "final_layer.norm_final",
            "proj_out": "final_layer.linear",
        },
        variant="SD3",
    ),
)
_AUTO = ("attention", "mlp")

DIFFUSERS_MMDIT = Architecture(
    "SD3Transformer2DModel",
    {
        # These norms also return the gates of their block; the activation is the first output.
        "norms": ("*.norm1#0", "*.norm1_context#0", "*.norm2", "*.norm2_context"),
        # Stable Diffusion 3.5 medium has a second attention in half of its blocks, over the picture alone.
        "attention": ("*.attn.to_out.0", "*.attn.to_add_out", "*.attn2.to_out.0"),
        "mlp": ("*.ff.net.2", "*.ff_context.net.2"),
        "blocks": numbered("transformer_blocks."),
    },
    auto=_AUTO,
    foldable=_AUTO,
    built_by="diffusers",
    shared=_SHARED,
)
COMFYUI_MMDIT = Architecture(
    "OpenAISignatureMMDITWrapper",
    {
        "norms": ("joint_blocks.*.norm[12]",),
        "attention": ("joint_blocks.*.attn.proj", "joint_blocks.*.attn2.proj"),
        "mlp": ("joint_blocks.*.mlp.fc2",),
        "blocks": numbered("joint_blocks."),
    },
    auto=_AUTO,
    foldable=_AUTO,
    built_by="ComfyUI",
    shared=_SHARED,
)
