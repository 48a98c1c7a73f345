"""Random language models of any kind that the transformers library has, and the sites in them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from helpers import byte_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from act_core.architectures.language import GEMMA, GPT2, GPT_NEOX, LLAMA, MIXTRAL, OLMO2, QWEN3_NEXT
from act_core.discovery import discover
from act_core.models.transformers import TransformersModel

LAYERS = 4
SIZES: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    # Mixtures of experts; the first layer may be dense.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_DEEPSEEK: dict[str, Any] = {
    "head_dim": None,
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
# Sizes of other kinds; None leaves one out.
OWN_SIZES: dict[str, dict[str, Any]] = {
    # Its attention has separate widths, and keys and values for each head.
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "falcon": {"head_dim": None},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]], "num_layers": LAYERS},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 16},
    # Mixtures of experts, each with names of its own for the sizes.
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": LAYERS,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "granitemoehybrid": {
        "layer_types": ["attention", "mamba"] * (LAYERS // 2),
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "shared_intermediate_size": 16,
    },
    "granitemoeshared": {"shared_intermediate_size": 16},
    "jetmoe": {"kv_channels": 8},
    # Each of its layers holds two blocks.
    "longcat_flash": {
        **_DEEPSEEK,
        "head_dim": 8,
        "num_layers": LAYERS // 2,
        "expert_ffn_hidden_size": 16,
        "ffn_hidden_size": 48,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "minimax": {"layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2), "block_size": 8},
}

LANGUAGE = (LLAMA, MIXTRAL, QWEN3_NEXT, GEMMA, OLMO2, GPT2, GPT_NEOX)
# Kinds without a record, and the record of the family that they are built like.
BUILT_ALIKE = {
    "granite": LLAMA,
    "glm4": LLAMA,
    "starcoder2": LLAMA,
    "granitemoe": MIXTRAL,
    "dots1": MIXTRAL,
    "minimax_m2": MIXTRAL,
}
BY_RECORD = [kind for architecture in LANGUAGE for kind in architecture.kinds] + list(BUILT_ALIKE)
# Language models without a record, and what their blocks hold; numbers stand as *.
BY_RULE = {
    "phi": ("self_attn.dense", "mlp"),
    "bloom": ("self_attention.dense", "mlp"),
    "falcon": ("self_attention.dense", "mlp"),
    "gptj": ("attn.out_proj", "mlp"),
    "gpt_neo": ("attn.attention.out_proj", "mlp"),
    "gpt_bigcode": ("attn.c_proj", "mlp"),
    "mpt": ("attn.out_proj", "ffn"),
    "persimmon": ("self_attn.dense", "mlp"),
    "vaultgemma": ("self_attn.o_proj", "mlp"),
    # Every other layer has a state space in place of attention, and a mixture of experts.
    "jamba": ("mamba.out_proj self_attn.o_proj", "feed_forward"),
    "rwkv": ("attention.output", "feed_forward"),
    "mamba": ("mixer.out_proj", None),
    "mamba2": ("mixer.out_proj", None),
    # It flattens rows and tokens before its feed-forward, which therefore holds no sites.
    "opt": ("self_attn.out_proj", None),
}


def built(kind: str, device: str = "cpu") -> Any:
    """A random model of a kind, as the transformers library makes it."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers does not know {kind}")
    sizes = SIZES | OWN_SIZES.get(kind, {})
    config = CONFIG_MAPPING[kind](**{name: size for name, size in sizes.items() if size is not None})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config).eval()


@cache
def tiny(kind: str) -> TransformersModel:
    """A random model of a kind, which tests share."""
    return TransformersModel(built(kind), byte_tokenizer(), kind)  # pyright: ignore[reportArgumentType]


def sites_of(model: TransformersModel, sites: str) -> list[str]:
    batch = model.batches(["rain", "sunny"], 2)[0]
    with torch.inference_mode():
        return [site.name for site in discover(model.components, sites, batch.run, batch.rows)]
