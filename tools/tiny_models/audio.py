"""Audio models, and others that make neither pictures nor videos from text."""

from __future__ import annotations

from typing import Any

from .model import TOKENS, Tiny, ids, normal

_ACE: dict[str, Any] = {
    "audio_model": "ace",
    "attention_head_dim": 32,
    "in_channels": 8,
    "inner_dim": 64,
    "max_height": 16,
    "max_position": 1024,
    "max_width": 1024,
    "mlp_ratio": 2.5,
    "num_attention_heads": 2,
    "num_layers": 2,
    "out_channels": 8,
    "patch_size": [16, 1],
    "rope_theta": 1e6,
    "speaker_embedding_dim": 512,
    "text_embedding_dim": 64,
    "ssl_encoder_depths": [1, 1],
    "ssl_latent_dims": [64, 64],
    "ssl_names": ["mert", "m-hubert"],
    "lyric_encoder_vocab_size": 100,
    "lyric_hidden_size": 1024,
}
_ACE_15: dict[str, Any] = {
    "audio_model": "ace1.5",
    "hidden_size": 128,
    "text_hidden_dim": 64,
    "num_dit_layers": 2,
    "num_lyric_layers": 1,
    "num_timbre_layers": 1,
    "num_tokenizer_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "intermediate_size": 128,
    "fsq_dim": 128,
    "encoder_hidden_size": 128,
    "encoder_intermediate_size": 128,
    "encoder_num_heads": 1,
}
_STABLE_AUDIO: dict[str, Any] = {
    "audio_model": "dit1.0",
    "embed_dim": 128,
    "depth": 2,
    "num_heads": 2,
    "cond_token_dim": 768,
    "project_cond_tokens": True,
}
_SEEDVR: dict[str, Any] = {
    "image_model": "seedvr2",
    "norm_eps": 1e-5,
    "num_layers": 2,
    "mlp_type": "swiglu",
    "vid_dim": 128,
    "heads": 1,
    "mm_layers": 1,
    "vid_out_norm": True,
}
_HUNYUAN_3D: dict[str, Any] = {
    "image_model": "hunyuan3d2",
    "context_in_dim": 64,
    "hidden_size": 128,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
}

AUDIO = {
    "ACE-Step 1": Tiny("ACEStep", _ACE, (1, 8, 16, 32), extras={"conditioning_lyrics": ids(90, 1, 9)}),
    "ACE-Step 1.5": Tiny("ACEStep15", _ACE_15, (1, 64, 20), extras={"conditioning_lyrics": normal(1, TOKENS, 64)}),
    "Stable Audio": Tiny("StableAudio", _STABLE_AUDIO, (1, 64, 32), width=768, tokens=(128, 128), seconds=True),
    "SeedVR2": Tiny("SeedVR2", _SEEDVR, (1, 16, 2, 8, 8), width=5120, extras={"condition": normal(1, 17, 2, 8, 8)}),
    "Hunyuan3D 2": Tiny("Hunyuan3Dv2", _HUNYUAN_3D, (1, 64, 32), tokens=(20, 20)),
}
