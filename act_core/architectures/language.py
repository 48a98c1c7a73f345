"""Causal language models, named as the transformers library names their parts; ComfyUI follows it for Llama's."""

from __future__ import annotations

from .base import Architecture, numbered

_LLAMA = {
    "norms": ("*.layers.*.input_layernorm", "*.layers.*.post_attention_layernorm"),
    "attention": ("*.self_attn.o_proj",),
    "mlp": ("*.mlp.down_proj", "*.mlp.c_proj"),
    "blocks": numbered("*.layers."),
}
# Norms of what leaves the attention and the feed-forward. The paper steers these in Gemma, not what enters them.
_POST_NORMS = {**_LLAMA, "norms": ("*.layers.*.post_attention_layernorm", "*.layers.*.post_feedforward_layernorm")}
# A mixture of experts returns the stream as a whole, where a dense layer has a last linear layer. A model may have
# both. Some return what the router decided, too: the stream is the first output.
_EXPERTS = ("*.layers.*.mlp#0", "*.layers.*.block_sparse_moe#0")

_ATTENTION = r"\.layers\.\d+\.self_attn\.o_proj$"
# Models with other norms or a second feed-forward beside the first: the presets would find half of them.
_MORE_PARTS = r"\.layers\.\d+\.(pre_(feedforward|ff|mlp)_layernorm|post_feedforward_layernorm|shared_mlp)$"

LLAMA = Architecture(
    "llama",
    _LLAMA,
    aliases=("mistral", "qwen2", "qwen3", "smollm3", "phi3"),
    marker=_ATTENTION,
    exclusion=_MORE_PARTS,
)
MIXTRAL = Architecture(
    "mixtral",
    {**_LLAMA, "mlp": _EXPERTS},
    aliases=("deepseek_v2", "deepseek_v3", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss", "glm4_moe"),
    marker=_ATTENTION,
    exclusion=_MORE_PARTS,
)
QWEN3_NEXT = Architecture(
    "qwen3_next",
    # Three of four layers have a linear attention in place of the other.
    {**_LLAMA, "attention": ("*.self_attn.o_proj", "*.linear_attn.out_proj"), "mlp": _EXPERTS},
    aliases=("qwen3_5_text", "qwen3_5_moe_text"),
)
GEMMA = Architecture("gemma2", _POST_NORMS, aliases=("gemma3_text",))
OLMO2 = Architecture(
    "olmo2",
    {**_POST_NORMS, "mlp": _EXPERTS},
    aliases=("olmo3", "flex_olmo", "exaone4"),
    marker=r"\.layers\.\d+\.post_feedforward_layernorm$",
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
