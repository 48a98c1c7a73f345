"""Transformers that make still pictures."""

from __future__ import annotations

from typing import Any

from .model import TOKENS, Tiny, ids, normal, ones

_STILL, _ONE_FRAME, _DEEP, _PIXELS = (1, 16, 8, 8), (1, 16, 1, 8, 8), (1, 128, 4, 4), (1, 3, 64, 64)
_MASK = {"attention_mask": ones(1, TOKENS)}
_POOLED = {"pooled_output": normal(1, 64)}

_NEXT_DIT: dict[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "n_heads": 2,
    "multiple_of": 32,
}
_LUMINA = {
    **_NEXT_DIT,
    "dim": 192,
    "n_kv_heads": 1,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
_Z_IMAGE = {
    **_NEXT_DIT,
    "dim": 256,
    "n_kv_heads": 2,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_COSMOS_2: dict[str, Any] = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
    "num_blocks": 2,
    "num_heads": 2,
    "extra_per_block_abs_pos_emb": False,
}
_PIXART: dict[str, Any] = {
    "num_heads": 2,
    "patch_size": 2,
    "hidden_size": 128,
    "in_channels": 4,
    "depth": 2,
    "caption_channels": 64,
    "model_max_length": 30,
    "input_size": 64,
    "pe_interpolation": 1,
    "micro_condition": False,
}
_HIDREAM: dict[str, Any] = {
    "image_model": "hidream",
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "caption_channels": [64, 64],
    "text_emb_dim": 64,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "axes_dims_rope": [64, 32, 32],
    "max_resolution": [128, 128],
    "llama_layers": [0, 1, 0, 1],
}
_HIDREAM_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
# It reads pictures that a prompt refers to, of which there are none here; in full it has 400 million weights.
_HIDREAM_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 1,
    "depth": 2,
    "deepstack_visual_indexes": (1,),
}
_OMNIGEN: dict[str, Any] = {
    "image_model": "omnigen2",
    "patch_size": 2,
    "in_channels": 16,
    "hidden_size": 96,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "num_attention_heads": 1,
    "num_kv_heads": 1,
    "multiple_of": 32,
    "axes_dim_rope": (32, 32, 32),
    "axes_lens": (300, 512, 512),
    "text_feat_dim": 64,
    "timestep_scale": 1000.0,
}
_BOOGU: dict[str, Any] = {
    "image_model": "boogu",
    "hidden_size": 240,
    "num_layers": 2,
    "num_double_stream_layers": 1,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 32,
    "instruction_feat_dim": 64,
}
_PIXEL_DIT: dict[str, Any] = {
    "image_model": "pixeldit_t2i",
    "num_groups": 2,
    "hidden_size": 128,
    "pixel_hidden_size": 16,
    "pixel_attn_hidden_size": 64,
    "pixel_num_groups": 2,
    "patch_depth": 2,
    "pixel_depth": 1,
    "txt_embed_dim": 64,
}
_TWO_LAYERS: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 1}
KANDINSKY = {
    "image_model": "kandinsky5",
    "model_dim": 128,
    "visual_embed_dim": 64,
    "in_text_dim": 64,
    "in_text_dim2": 64,
    "time_dim": 64,
    "ff_dim": 128,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (16, 24, 24),
}
_KREA = {
    "image_model": "krea2",
    "features": 128,
    "tdim": 64,
    "txtdim": 64,
    "heads": 1,
    "kvheads": 1,
    "layers": 2,
    "txtlayers": 2,
    "txtheads": 1,
    "txtkvheads": 1,
}
_AURA = {
    "max_seq": 64,
    "cond_seq_dim": 64,
    "n_double_layers": 1,
    "n_layers": 3,
    "dim": 128,
    "n_heads": 2,
    "global_conddim": 128,
}
_HUNYUAN_DIT = {
    "image_model": "hydit",
    "depth": 4,
    "hidden_size": 128,
    "num_heads": 2,
    "text_states_dim": 64,
    "text_states_dim_t5": 64,
    "size_cond": False,
}
# The conditioning of Ideogram 4 holds 13 layers of its language model.
_IDEOGRAM_WIDTH = 13 * 64
_IDEOGRAM = {"num_attention_heads": 1, "intermediate_size": 256, "adaln_dim": 32, "llm_features_dim": _IDEOGRAM_WIDTH}

STILLS = {
    "Qwen-Image": Tiny(
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "joint_attention_dim": 64, **_TWO_LAYERS},
        _ONE_FRAME,
    ),
    "Lumina 2": Tiny("Lumina2", _LUMINA, _STILL, extras=_MASK),
    "Z-Image": Tiny("ZImage", _Z_IMAGE, _STILL, extras=_MASK),
    "HiDream-I1": Tiny(
        "HiDream",
        _HIDREAM,
        _STILL,
        tokens=(30, 30),
        extras={**_POOLED, "conditioning_llama3": normal(1, 2, TOKENS, 64)},
    ),
    "HiDream-O1": Tiny(
        "HiDreamO1",
        {
            "image_model": "hidream_o1",
            "text_config_overrides": _HIDREAM_TEXT,
            "vision_config_overrides": _HIDREAM_VISION,
        },
        _PIXELS,
        extras={"text_input_ids": ids(1000, 1, TOKENS)},
    ),
    "Cosmos Predict 2": Tiny(
        "CosmosT2IPredict2",
        {**_COSMOS_2, "image_model": "cosmos_predict2", "crossattn_emb_channels": 64},
        _ONE_FRAME,
        tokens=(30, 30),
    ),
    "Anima": Tiny(
        "Anima",
        {**_COSMOS_2, "image_model": "anima", "crossattn_emb_channels": 1024},
        _ONE_FRAME,
        width=1024,
        extras={"t5xxl_ids": ids(32000, TOKENS), "t5xxl_weights": ones(TOKENS)},
    ),
    "PixArt Alpha": Tiny("PixArtAlpha", {**_PIXART, "image_model": "pixart_alpha"}, (1, 4, 64, 64), tokens=(30, 30)),
    "PixArt Sigma": Tiny("PixArtSigma", {**_PIXART, "image_model": "pixart_sigma"}, (1, 4, 64, 64), tokens=(30, 30)),
    "AuraFlow": Tiny("AuraFlow", _AURA, (1, 4, 8, 8), tokens=(30, 30)),
    "Hunyuan-DiT": Tiny(
        "HunyuanDiT",
        _HUNYUAN_DIT,
        (1, 4, 8, 8),
        tokens=(77, 77),
        extras={
            "attention_mask": ones(1, 77),
            "conditioning_mt5xl": normal(1, 256, 64),
            "attention_mask_mt5xl": ones(1, 256),
        },
    ),
    "OmniGen2": Tiny("Omnigen2", _OMNIGEN, _STILL, extras=_MASK),
    "Boogu": Tiny("Boogu", _BOOGU, _STILL, extras=_MASK),
    "Mage-Flow": Tiny("MageFlow", {"image_model": "mage_flow", "joint_attention_dim": 64, **_TWO_LAYERS}, _DEEP),
    "JoyImage": Tiny(
        "JoyImage", {"image_model": "joyimage", "hidden_size": 128, "text_dim": 64, **_TWO_LAYERS}, _ONE_FRAME
    ),
    "Ideogram 4": Tiny(
        "Ideogram4",
        {"image_model": "ideogram4", "num_layers": 2},
        _DEEP,
        width=_IDEOGRAM_WIDTH,
        extras=_MASK,
        overrides={"unet_extra_config": _IDEOGRAM},
    ),
    "Krea 2": Tiny("Krea2", _KREA, _ONE_FRAME, width=128),
    "Lens": Tiny(
        "Lens",
        {"image_model": "lens", "enc_hidden_dim": 64, "selected_layer_index": (0, 1), **_TWO_LAYERS},
        _DEEP,
        width=128,
        extras=_MASK,
    ),
    "Kandinsky 5 image": Tiny("Kandinsky5Image", KANDINSKY, _STILL, extras=_POOLED),
    "ERNIE-Image": Tiny(
        "ErnieImage",
        {
            "image_model": "ernie",
            "hidden_size": 256,
            "num_attention_heads": 2,
            "num_layers": 2,
            "ffn_hidden_size": 256,
            "text_in_dim": 64,
        },
        _DEEP,
    ),
    "PixelDiT": Tiny("PixelDiTT2I", _PIXEL_DIT, _PIXELS, tokens=(30, 30), extras=_MASK),
}
