"""Audio models."""

from __future__ import annotations

from typing import Any

from .model import Tiny, ids

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

AUDIO = {
    "ACE-Step 1": Tiny("ACEStep", _ACE, (1, 8, 16, 32), extras={"conditioning_lyrics": ids(90, 1, 9)}),
}
