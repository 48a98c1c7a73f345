"""Causal language models, with the names of transformers; ComfyUI uses the same names for Llama."""

from __future__ import annotations

from .base import Architecture, numbered

# A model without a head has no name before that of its layers.
_BLOCKS = (*numbered("layers."), *numbered("*.layers."))
_LLAMA = {
    "norms": ("*layers.*.input_layernorm", "*layers.*.post_attention_layernorm"),
    "attention": ("*.self_attn.o_proj",),
    "mlp": ("*.mlp.down_proj", "*.mlp.c_proj"),
    "blocks": _BLOCKS,
}
_BLOCK = "model.layers.{}"
# Norms after attention and feed-forward. In Gemma, the paper steers these rather than the norms before them.
_POST_NORMS = {**_LLAMA, "norms": ("*layers.*.post_attention_layernorm", "*layers.*.post_feedforward_layernorm")}
# A mixture of experts returns the hidden states as a whole, where a dense layer ends in a linear layer. A model may
# contain both. Some also return the router's decision; the hidden states are the first output.
_EXPERTS = ("*layers.*.mlp#0", "*layers.*.block_sparse_moe#0")

_ATTENTION = r"\.layers\.\d+\.self_attn\.o_proj$"
# Models with further norms or a second, parallel feed-forward, of which the presets would find only half.
_MORE_PARTS = r"\.layers\.\d+\.(pre_(feedforward|ff|mlp)_layernorm|post_feedforward_layernorm|shared_mlp)$"

LLAMA = Architecture(
    "llama",
    _LLAMA,
    aliases=("mistral", "qwen2", "qwen3", "smollm3", "phi3"),
    marker=_ATTENTION,
    exclusion=_MORE_PARTS,
    block=_BLOCK,
)
MIXTRAL = Architecture(
    "mixtral",
    {**_LLAMA, "mlp": _EXPERTS},
    aliases=("deepseek_v2", "deepseek_v3", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss", "glm4_moe"),
    marker=_ATTENTION,
    exclusion=_MORE_PARTS,
    block=_BLOCK,
)
QWEN3_NEXT = Architecture(
    "qwen3_next",
    # Three of four layers have linear attention instead.
    {**_LLAMA, "attention": ("*.self_attn.o_proj", "*.linear_attn.out_proj"), "mlp": _EXPERTS},
    aliases=("qwen3_5_text", "qwen3_5_moe_text"),
    block=_BLOCK,
)
GEMMA = Architecture("gemma2", _POST_NORMS, aliases=("gemma3_text",), block=_BLOCK)
OLMO2 = Architecture(
    "olmo2",
    {**_POST_NORMS, "mlp": _EXPERTS},
    aliases=("olmo3", "flex_olmo", "exaone4"),
    marker=r"\.layers\.\d+\.post_feedforward_layernorm$",
    block=_BLOCK,
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
    block="transformer.h.{}",
)
GPT_NEOX = Architecture(
    "gpt_neox",
    {
        "norms": ("*layers.*.input_layernorm", "*layers.*.post_attention_layernorm"),
        "attention": ("*.attention.dense",),
        "mlp": ("*.mlp.dense_4h_to_h",),
        "blocks": _BLOCKS,
    },
    foldable=("norms", "attention", "mlp"),
    block="gpt_neox.layers.{}",
)
