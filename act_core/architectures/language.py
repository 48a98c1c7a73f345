"""Causal language models, named as the transformers library names their parts; ComfyUI follows it for Llama's."""

from __future__ import annotations

from .base import Architecture, numbered

_LLAMA = {
    "norms": ("*.layers.*.input_layernorm", "*.layers.*.post_attention_layernorm"),
    "attention": ("*.self_attn.o_proj",),
    "mlp": ("*.mlp.down_proj",),
    "blocks": numbered("*.layers."),
}

LLAMA = Architecture(
    "llama",
    _LLAMA,
    aliases=("mistral", "qwen2", "qwen3", "smollm3", "phi3"),
    marker=r"\.layers\.\d+\.self_attn\.o_proj$",
    foldable=("norms",),
)
GEMMA = Architecture(
    "gemma2",
    # The paper steers what leaves the attention and the feed-forward of Gemma, not what enters them.
    {**_LLAMA, "norms": ("*.layers.*.post_attention_layernorm", "*.layers.*.post_feedforward_layernorm")},
    aliases=("gemma3_text",),
)
GPT2 = Architecture(
    "gpt2",
    {
        "norms": ("*.h.*.ln_[12]",),
        "attention": ("*.attn.c_proj",),
        "mlp": ("*.mlp.c_proj",),
        "blocks": numbered("*.h."),
    },
    foldable=("norms", "attention", "mlp"),
)
GPT_NEOX = Architecture(
    "gpt_neox",
    {
        "norms": ("*.layers.*.input_layernorm", "*.layers.*.post_attention_layernorm"),
        "attention": ("*.attention.dense",),
        "mlp": ("*.mlp.dense_4h_to_h",),
        "blocks": numbered("*.layers."),
    },
    foldable=("norms", "attention", "mlp"),
)
