"""Video models, and Hunyuan's picture model, which is built like its video models."""

from __future__ import annotations

from typing import Any

from .model import TOKENS, Tiny, normal, nothing, ones
from .stills import KANDINSKY

_FRAMES = (1, 16, 2, 8, 8)
_MASK = {"attention_mask": ones(1, TOKENS)}
_POOLED = {"pooled_output": normal(1, 64)}

_HUNYUAN: dict[str, Any] = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "qkv_bias": True,
    "byt5": False,
    "meanflow": False,
    "meanflow_sum": False,
    "guidance_embed": True,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
_HUNYUAN_15 = {
    **_HUNYUAN,
    "vec_in_dim": None,
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "byt5": True,
    "guidance_embed": False,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
    "meanflow_sum": True,
}
_HUNYUAN_IMAGE = {
    **_HUNYUAN,
    "vec_in_dim": None,
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": [1, 1],
    "axes_dim": [64, 64],
    "byt5": True,
    "guidance_embed": False,
}
_WAN: dict[str, Any] = {
    "image_model": "wan2.1",
    "dim": 128,
    "ffn_dim": 256,
    "num_heads": 1,
    "num_layers": 2,
    "text_dim": 64,
    "patch_size": (1, 2, 2),
}
_LTX: dict[str, Any] = {
    "image_model": "ltxv",
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "cross_attention_dim": 128,
    "caption_channels": 64,
}
_LTX_2 = {
    **_LTX,
    "image_model": "ltxav",
    "audio_attention_head_dim": 16,
    "audio_num_attention_heads": 4,
    "audio_cross_attention_dim": 64,
    "connector_attention_head_dim": 32,
    "connector_num_attention_heads": 2,
}
_COSMOS = {
    "image_model": "cosmos",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "block_config": "FA-CA-MLP",
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": False,
    "pos_emb_interpolation": "crop",
    "block_x_format": "THWBD",
    "affline_emb_norm": True,
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
    "num_blocks": 2,
    "num_heads": 2,
    "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
    "crossattn_emb_channels": 64,
}
_MOCHI = {
    "image_model": "mochi_preview",
    "depth": 2,
    "patch_size": 2,
    "num_heads": 2,
    "hidden_size_x": 128,
    "hidden_size_y": 64,
    "mlp_ratio_x": 96.0,
    "mlp_ratio_y": 4.0,
    "learn_sigma": False,
    "in_channels": 12,
    "qk_norm": True,
    "qkv_bias": False,
    "out_bias": True,
    "attn_drop": 0.0,
    "patch_embed_bias": True,
    "posenc_preserve_area": True,
    "timestep_mlp_bias": True,
    "attend_to_padding": False,
    "timestep_scale": 1000.0,
    "use_t5": True,
    "t5_feat_dim": 64,
    "t5_token_length": 256,
    "rope_theta": 10000.0,
}
_COG = {
    "image_model": "cogvideox",
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "time_embed_dim": 64,
    "num_layers": 2,
    "in_channels": 16,
    "text_embed_dim": 64,
    "use_rotary_positional_embeddings": True,
    "max_text_seq_length": 30,
}
_KANDINSKY = {**KANDINSKY, "visual_embed_dim": 132}


def _wan(kind: str, model_type: str, latent: tuple[int, ...] = _FRAMES, **more: Any) -> Tiny:
    return Tiny(kind, {**_WAN, "model_type": model_type, **more}, latent, tokens=(512, 512))


VIDEOS = {
    "HunyuanVideo": Tiny("HunyuanVideo", _HUNYUAN, _FRAMES, tokens=(30, 40), extras=_POOLED),
    "HunyuanVideo 1.5": Tiny(
        "HunyuanVideo15", _HUNYUAN_15, (1, 32, 2, 4, 4), tokens=(30, 40), extras={"pooled_output": nothing()}
    ),
    "HunyuanImage 2.1": Tiny(
        "HunyuanImage21",
        _HUNYUAN_IMAGE,
        (1, 64, 4, 4),
        tokens=(30, 40),
        extras={"conditioning_byt5small": normal(1, 8, 1472)},
    ),
    "Wan 2.1": _wan("WAN21_T2V", "t2v"),
    "Wan 2.1 image to video": _wan("WAN21_I2V", "i2v", in_dim=36),
    "Wan 2.2 5B": _wan("WAN22_T2V", "t2v", (1, 48, 2, 8, 8), in_dim=48, out_dim=48),
    "Wan 2.1 VACE": _wan("WAN21_Vace", "vace", vace_layers=1, vace_in_dim=96),
    "Wan 2.1 Camera": _wan("WAN21_Camera", "camera", in_dim=32),
    "Wan 2.2 Animate": _wan("WAN22_Animate", "animate", in_dim=36),
    "Wan 2.2 S2V": _wan("WAN22_S2V", "s2v", audio_inject_layers=[0, 1]),
    "Wan 2.1 HuMo": _wan("WAN21_HuMo", "humo", in_dim=36),
    "Wan 2.1 SCAIL": _wan("WAN21_SCAIL", "scail"),
    "LTX-Video": Tiny("LTXV", _LTX, (1, 128, 2, 4, 4), tokens=(30, 30), extras=_MASK),
    "LTX-2": Tiny("LTXAV", _LTX_2, (1, 128, 2, 4, 4), tokens=(30, 30)),
    "LTX-2 with sound": Tiny("LTXAV", _LTX_2, (1, 128, 2, 4, 4), tokens=(30, 30), sound=(1, 8, 6, 16)),
    "Cosmos 1": Tiny("CosmosT2V", _COSMOS, _FRAMES, tokens=(30, 30)),
    "Mochi": Tiny("GenmoMochi", _MOCHI, (1, 12, 2, 8, 8), tokens=(256, 256), extras=_MASK),
    "Kandinsky 5 video": Tiny("Kandinsky5", _KANDINSKY, _FRAMES, extras=_POOLED),
    "CogVideoX": Tiny("CogVideoX_T2V", _COG, _FRAMES, tokens=(30, 30)),
}
