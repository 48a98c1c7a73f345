"""UNets, and Stable Cascade."""

from __future__ import annotations

from typing import Any

from .model import Tiny, normal

_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_heads": 2,
    "num_head_channels": -1,
    "context_dim": 32,
    "use_linear_in_transformer": True,
}
_BY_CLASS = {"num_classes": "sequential", "num_heads": -1}
_VIDEO = {
    "in_channels": 8,
    "adm_in_channels": 768,
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "video_kernel_size": [3, 1, 1],
    "merge_strategy": "learned_with_images",
    "disable_temporal_crossattention": False,
    "use_spatial_context": True,
    "extra_ff_mix_layer": True,
    "max_ddpm_temb_period": 10000,
}
_FIXED: dict[str, Any] = {"width": 32, "latent": (1, 4, 8, 8), "tokens": (77, 77)}
_CASCADE = {"c_clip_text": 64, "c_clip_text_pooled": 64, "c_clip_img": 768}

UNETS = {
    "SD 1.5": Tiny("SD15", {**_UNET, "use_linear_in_transformer": False}, **_FIXED),
    "SD 2.0": Tiny("SD20", {**_UNET, "num_heads": -1}, **_FIXED),
    "SDXL": Tiny(
        "SDXL", {**_UNET, **_BY_CLASS, "adm_in_channels": 32 + 1536}, **_FIXED, extras={"pooled_output": normal(1, 32)}
    ),
    "SVD": Tiny("SVD_img2vid", {**_UNET, **_BY_CLASS, **_VIDEO}, latent=(4, 4, 8, 8), width=32, tokens=(1, 1)),
    "Stable Cascade C": Tiny(
        "Stable_Cascade_C",
        {
            "stable_cascade_stage": "c",
            "c_cond": 64,
            "c_hidden": [64, 64],
            "nhead": [2, 2],
            "blocks": [[1, 2], [2, 1]],
            **_CASCADE,
        },
        latent=(1, 16, 8, 8),
        tokens=(77, 77),
        extras={"pooled_output": normal(1, 1, 64)},
    ),
    "Stable Cascade B": Tiny(
        "Stable_Cascade_B",
        {
            "stable_cascade_stage": "b",
            "c_cond": 64,
            "c_hidden": [64] * 4,
            "nhead": [-1, -1, 2, 2],
            "blocks": [[1] * 4, [1] * 4],
            "block_repeat": [[1] * 4, [2, 2, 1, 1]],
            "c_clip": 64,
        },
        latent=(1, 4, 16, 16),
        tokens=(77, 77),
        extras={"pooled_output": normal(1, 1, 64)},
    ),
}
