"""Multimodal diffusion transformers: Stable Diffusion 3 and 3.5. Both streams are steered: picture and text."""

from __future__ import annotations

from .base import Architecture, numbered

# ComfyUI's names for the parts that return the same tensors as in diffusers. The norms are left out, because those of
# diffusers return modulated values.
_IN_COMFYUI = {
    "transformer_blocks.{}.attn.to_out.0": "joint_blocks.{}.x_block.attn.proj",
    "transformer_blocks.{}.attn.to_add_out": "joint_blocks.{}.context_block.attn.proj",
    "transformer_blocks.{}.attn2.to_out.0": "joint_blocks.{}.x_block.attn2.proj",
    "transformer_blocks.{}.ff.net.2": "joint_blocks.{}.x_block.mlp.fc2",
    "transformer_blocks.{}.ff_context.net.2": "joint_blocks.{}.context_block.mlp.fc2",
}
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
    elsewhere={"OpenAISignatureMMDITWrapper": _IN_COMFYUI},
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
    elsewhere={"SD3Transformer2DModel": {theirs: ours for ours, theirs in _IN_COMFYUI.items()}},
)
