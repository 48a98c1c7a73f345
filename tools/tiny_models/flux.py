"""Stable Diffusion 3, Flux, and the models that are built like Flux."""

from __future__ import annotations

from typing import Any

import torch

from .model import Tiny, normal, nothing


def _sd3(depth: int, **more: Any) -> dict[str, Any]:
    context = {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 64 * depth}}
    return {
        "input_size": None,
        "patch_size": 2,
        "in_channels": 16,
        "depth": depth,
        "adm_in_channels": 64,
        "context_embedder_config": context,
        "num_patches": 256,
        "pos_embed_max_size": 16,
        "qk_norm": "rms",
        **more,
    }


_FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "txt_ids_dims": [],
}
_FLUX2 = {
    **_FLUX,
    "image_model": "flux2",
    "axes_dim": [32] * 4,
    "theta": 2000,
    "mlp_ratio": 3.0,
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "vec_in_dim": None,
    "global_modulation": True,
    "mlp_silu_act": True,
    "qkv_bias": False,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
}
_UNPADDED = {**_FLUX, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}
_CHROMA = {
    **_FLUX,
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 128,
    "hidden_dim": 64,
    "n_layers": 2,
    "vec_in_dim": None,
}
_RADIANCE = {
    **_CHROMA,
    "image_model": "chroma_radiance",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 16,
    "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 4,
    "nerf_depth": 2,
    "nerf_max_freqs": 8,
    "nerf_tile_size": 512,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}
_POOLED = {"pooled_output": normal(1, 64)}
_UNPOOLED = {"pooled_output": nothing()}
_STILL = (1, 16, 8, 8)

FLUX = {
    "SD3": Tiny("SD3", _sd3(2), _STILL, tokens=(77, 77), extras=_POOLED),
    "SD3.5 medium": Tiny("SD3", _sd3(3, x_block_self_attn_layers=[0, 1]), _STILL, tokens=(77, 77), extras=_POOLED),
    "Flux.1 dev": Tiny("Flux", {**_FLUX, "guidance_embed": True}, _STILL, tokens=(256, 256), extras=_POOLED),
    "Flux.1 schnell": Tiny(
        "FluxSchnell", {**_FLUX, "guidance_embed": False}, _STILL, tokens=(256, 256), extras=_POOLED
    ),
    "Flux.2 dev": Tiny("Flux2", {**_FLUX2, "guidance_embed": True}, (1, 128, 4, 4), tokens=(512, 512)),
    "Flux.2 Klein": Tiny("Flux2", {**_FLUX2, "guidance_embed": False}, (1, 128, 4, 4), tokens=(512, 512)),
    "LongCat-Image": Tiny("LongCatImage", _UNPADDED, _STILL, tokens=(30, 40)),
    "Ovis-Image": Tiny(
        "FluxSchnell", {**_UNPADDED, "yak_mlp": True, "txt_norm": True}, _STILL, tokens=(30, 40), extras=_UNPOOLED
    ),
    "Chroma": Tiny("Chroma", _CHROMA, _STILL, tokens=(30, 40)),
    "Chroma Radiance": Tiny("ChromaRadiance", _RADIANCE, (1, 3, 64, 64), tokens=(30, 40)),
}
