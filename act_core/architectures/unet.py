"""UNets: Stable Diffusion 1 and 2, SDXL.

All norms, as in the paper: those of the attention blocks, of the residual blocks, and the last.
"""

from __future__ import annotations

from .base import Architecture, numbered

DIFFUSERS_UNET = Architecture(
    "UNet2DConditionModel",
    {
        "norms": ("*.norm", "*.norm[123]", "conv_norm_out"),
        "attention": ("*.attn[12].to_out.0",),
        "mlp": ("*.ff.net.2",),
        "blocks": (*numbered("*.transformer_blocks."), *numbered("*.resnets.")),
    },
    auto=("norms",),
    foldable=("norms", "attention", "mlp"),
)
COMFYUI_UNET = Architecture(
    "UNetModel",
    {
        "norms": ("*.transformer_blocks.*.norm[123]", "*.norm", "*.in_layers.0", "*.out_layers.0", "out.0"),
        "attention": ("*.attn[12].to_out.0",),
        "mlp": ("*.ff.net.2",),
        "blocks": (*numbered("*.transformer_blocks."), "*.out_layers.3"),
    },
    auto=("norms",),
    foldable=("norms", "attention", "mlp"),
)
